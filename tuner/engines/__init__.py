"""Where configurations run: simulated, or as processes and containers. Knows no search."""
