"""The fitted numbers of an SGLang release on a machine. Knows no configuration and no workload."""
