"""The `sgtune` command line. Commands import what they need when they run: `sgtune --help` stays instant."""
