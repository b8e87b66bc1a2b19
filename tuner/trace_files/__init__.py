"""Trace files: what is published, what operators log, and what sgtune writes; knows files, and no server."""
