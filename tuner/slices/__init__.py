"""Models of fewer layers, launched and used to screen. Knows no command line."""
