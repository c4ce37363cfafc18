"""Where servers and mounts write what happens: standard error, or a file."""

import faulthandler
import logging
from pathlib import Path
from typing import Final

from dfs.cli.connect import options

_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def start_logging(file: Path | None = None) -> None:
    """A server logs to stderr, whoever runs it keeps that; or to `file`.

    Raises:
        OSError: the file cannot be written.
    """
    level = logging.INFO
    if options.verbose:
        level = logging.DEBUG
    elif options.quiet:
        level = logging.WARNING
    handler = logging.StreamHandler() if file is None else logging.FileHandler(file)
    handler.setFormatter(logging.Formatter(_FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("dfs").handlers.clear()
    for name in ("dfs", "dfs_fuse"):
        logging.getLogger(name).setLevel(level)
    # What nobody foresaw has to be found in the log.
    options.tracebacks = True
    faulthandler.enable()
