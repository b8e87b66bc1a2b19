"""Launch files: one command as a script, a YAML file, a container, a unit, a manifest or a batch job."""
