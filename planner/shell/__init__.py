"""Shell scripts read without running them: words, commands, variables, and what a script would start."""
