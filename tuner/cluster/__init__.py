"""Launches on other machines: seats that run one engine on one node, and pools that hand them out. Knows no search."""
