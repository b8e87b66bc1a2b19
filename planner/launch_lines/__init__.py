"""Launch lines: the server and its flags, found in a command, a script or a manifest as people have them."""
