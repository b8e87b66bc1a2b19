"""Deployments: many servers behind a router. Knows no process and no file format."""
