"""The mathematics of alignment as pure functions of tensors: no model, no file, no random number.

Shapes: B sequences, T response positions, V vocabulary. ``response_mask`` is True on real response
tokens, the ending token included. What stands at masked positions, NaN included, never matters.
"""
