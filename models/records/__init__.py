"""Published and measured points, and the fits to them. Knows no launch line."""
