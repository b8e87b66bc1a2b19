"""Know the machine: catalogue, NVML inventory, measurements. Knows nothing of models or SGLang."""
