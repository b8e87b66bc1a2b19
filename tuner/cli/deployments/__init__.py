"""Commands of whole deployments: tune --servers."""
