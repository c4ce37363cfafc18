"""Disks of these tests lie in memory where there is such a file system: they sync a lot."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

IN_MEMORY = "/dev/shm"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """As pytest's, but gone after the test."""
    usable = os.path.isdir(IN_MEMORY) and os.access(IN_MEMORY, os.W_OK)
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if usable else None) as path:
        yield Path(path)


@pytest.fixture
def real_disk_path() -> Iterator[Path]:
    """On the disk that holds the temporary files."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)
