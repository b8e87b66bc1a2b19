"""Plans for a trace: what servers do under it minute by minute, and the fewest that keep its SLOs; reads no file."""
