"""Ports for the servers that tests start."""

import random
import socket

BELOW_OUTGOING = range(20_000, 32_768)  # outgoing connections get those from there on; Kedro-Viz ends at 49151


def free_port():
    """A port of this machine that nobody listens on, and that no outgoing connection takes in between."""
    for port in random.sample(BELOW_OUTGOING, 100):
        with socket.socket() as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                found.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"100 ports of {BELOW_OUTGOING} are taken")
