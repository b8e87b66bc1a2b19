"""Proposes the next configuration. Knows no engine and starts nothing."""
