"""Measured points as cases, and profiles learned from them. Knows no engine."""
