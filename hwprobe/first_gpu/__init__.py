"""The first half hour on a GPU: what is run, kept, judged and proposed. Begun by tools/first_gpu.py."""
