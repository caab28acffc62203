"""The study's graph with nodes that take no time: for tests of what runs around the nodes."""
