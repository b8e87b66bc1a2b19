"""What one step costs: GiB of a GPU, milliseconds of a pass. Knows one step, never a queue."""
