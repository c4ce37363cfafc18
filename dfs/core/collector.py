"""The garbage collector of a process that serves for long.

Left as it is, it took half of a chunk server's time: what the modules brought in was looked at
again and again, for the sake of requests that make few cycles or none.
"""

import gc
from typing import Final

_THRESHOLD: Final = 20_000
"""New objects between two collections of the youngest."""


def tune() -> None:
    """What is there now stays for good. Call it once, when the process is ready to serve."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_THRESHOLD, 20, 50)
