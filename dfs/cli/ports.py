"""Loopback ports for a dev cluster.

They are chosen outside the kernel's range for outgoing connections. Inside it, a client that
keeps trying a dead server's port can end up connected to itself, and then holds the very port
the server needs to come back.
"""

import random
import socket
from pathlib import Path
from typing import Final

LOOPBACK: Final = "127.0.0.1"
_LOWEST: Final = 15000
_HIGHEST: Final = 65535
_ATTEMPTS: Final = 1000


def _outgoing_range() -> tuple[int, int]:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
        low, high = map(int, text.split())
    except (OSError, ValueError):
        return 32768, 60999
    return low, high


def is_free(port: int) -> bool:
    """Whether a server could listen on it right now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: connections that linger in TIME_WAIT do not count as use.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def choose(taken: set[int]) -> int:
    """A free port that is not in `taken`, and adds it there.

    Raises:
        OSError: hardly a port is free.
    """
    low, high = _outgoing_range()
    candidates: list[int] = [*range(_LOWEST, min(low, _HIGHEST)), *range(high + 1, _HIGHEST + 1)]
    candidates = candidates or list(range(_LOWEST, _HIGHEST + 1))
    for _ in range(_ATTEMPTS):
        port = random.choice(candidates)
        if port not in taken and is_free(port):
            taken.add(port)
            return port
    raise OSError("no free loopback port found")
