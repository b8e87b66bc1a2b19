"""Answers as tables and sentences. Reads nothing and starts nothing."""
