"""A run's records, written to disk and read back. Knows no engine and no sampler."""
