"""How weights are stored: the format of every component of a checkpoint, read from its own files. Knows no shapes."""
