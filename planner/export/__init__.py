"""Launch files: the same command as a shell script and as SGLang's own YAML configuration."""
