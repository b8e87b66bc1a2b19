"""The cost of one step: GiB of a GPU, milliseconds of a pass. Knows one step, never a queue."""
