"""Requests over time: closed form, event replay, predictions with their bands. Knows no flags and no files."""
