"""Published and measured points, and what is learned from them. Knows no launch line."""
