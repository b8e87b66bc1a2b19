"""What all commands share: options, the terminal, records read from files. Knows no command."""
