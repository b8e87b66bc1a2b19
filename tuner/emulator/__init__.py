"""The emulated server: SGLang's API, log lines, process tree and exit codes, in real time, with a world's truth."""
