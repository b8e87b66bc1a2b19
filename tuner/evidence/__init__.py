"""What a run has seen, on disk and read back. Knows no engine and no sampler."""
