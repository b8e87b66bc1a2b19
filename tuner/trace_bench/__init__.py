"""The load generator under a trace: sessions within an open loop, prompts that really share; knows no command line."""
