"""The matrix methods × seeds: what it consists of, and an engine that runs it on this machine."""
