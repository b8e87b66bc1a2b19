"""What NVML and the host say of a machine. Knows no kernel and no model."""
