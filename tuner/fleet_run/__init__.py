"""Tuning deployments: rates of roles, the few whole launches, their result. Knows no process and no command line."""
