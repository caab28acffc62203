"""The matrix methods × seeds: what it consists of, and the engines that run it."""
