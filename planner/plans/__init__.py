"""The search over configurations and the plan it makes. Knows no process and no file format."""
