"""One launch line judged: rules, memory, speed, advice. Knows no search for other machines."""
