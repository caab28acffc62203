"""Secrets that a test plants, and where they turn up."""


def holding(root, words):
    """Every file below a folder that holds one of ``words``."""
    return [
        (path.name, word)
        for path in root.rglob("*")
        if path.is_file()
        for word in words
        if word.encode() in path.read_bytes()
    ]
