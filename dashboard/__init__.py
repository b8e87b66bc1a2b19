"""Show run folders, read-only. The pages come with the dashboard's own release; nothing is drawn yet."""
