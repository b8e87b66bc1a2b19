"""The load generator and its judgement of a point. Knows no launch and no tuner."""
