"""A server that answers as SGLang does, in a world's truth. Knows no tuner."""
