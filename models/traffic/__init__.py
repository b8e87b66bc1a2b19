"""Traffic as recorded: arrivals, lengths, sessions and shared prefixes of requests; knows no server and no file."""
