"""The load generator: exact traffic, steady-state windows, and a verdict on every point."""
