"""A server process: lifeline, ports, readiness, failure. Knows no load and no search."""
