"""Show plans and run folders in a browser: it only reads, and computes nothing the other packages do not."""
