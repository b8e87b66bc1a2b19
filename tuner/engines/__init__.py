"""Where a configuration can be launched and measured. The tuner's loop sees only `seam`."""
