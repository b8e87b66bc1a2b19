"""Which settings would give a table of measurements that does not name them. Knows records, starts nothing."""
