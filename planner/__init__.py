"""Decide: what may vary, SGLang's rules and flags, ranking, capacity, export. Pure; starts nothing."""
