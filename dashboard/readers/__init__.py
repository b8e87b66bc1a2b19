"""Plans and run folders, read and put into words. Writes nothing."""
