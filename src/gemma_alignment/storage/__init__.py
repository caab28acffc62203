"""A study on an object store: worked on in a folder of each machine, and mirrored."""
