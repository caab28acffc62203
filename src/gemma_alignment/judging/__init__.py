"""A judge compares two answers: clients, both orders, parsing, money and what the judge is worth."""
