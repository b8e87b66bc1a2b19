"""Figures and tables as pure functions. Knows no widget and reads no file."""
