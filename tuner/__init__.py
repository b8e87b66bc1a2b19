"""Prove: live runs, the run folder, the study, and the command line."""

__version__ = "0.1.0"
