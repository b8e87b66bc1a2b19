"""Launch files of a run or a plan, and their verification. Knows no search."""
