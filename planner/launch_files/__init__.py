"""Launch files written in the language of each target. Knows no run folder and starts nothing."""
