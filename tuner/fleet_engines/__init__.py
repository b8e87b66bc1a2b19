"""Where deployments run: servers and a router as processes of this machine, or in virtual time."""
