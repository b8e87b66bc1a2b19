"""The command line. Everything else works without it."""
