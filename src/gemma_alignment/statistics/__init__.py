"""Small pure functions on numbers: effect sizes, intervals, tests, win rates.

numpy and scipy only; whoever wants randomness passes a generator. What is not defined
comes back as None with a ``reason``: never as NaN, infinity or 0.
"""
