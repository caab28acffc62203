"""The embedded world: a small domain of instructions in which the true quality of an answer is known."""
