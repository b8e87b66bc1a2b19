"""What torch measures on a GPU, in a child process. Knows no NVML and no data sheet."""
