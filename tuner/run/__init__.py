"""One tuning run: set-up, the loop, its result. Knows no command line and draws nothing."""
