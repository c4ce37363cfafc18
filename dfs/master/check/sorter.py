"""Sorting more records than memory holds: sorted runs in nameless files, merged when read.

A check uses it for what the store has in another order than it is wanted in. The files vanish
with the process, however it ends.
"""

import heapq
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

RUN_RECORDS: Final = 500_000
"""Records held in memory: some 50 MiB."""
_BLOCK_RECORDS: Final = 1000
"""Records read from a run at a time."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[bytes]).decode


class Sorter:
    """Add records in any order, then read them in theirs, once. A context manager."""

    def __init__(self, directory: Path | None = None, run_records: int = RUN_RECORDS) -> None:
        """Without a `directory` everything stays in memory."""
        self._directory = directory
        self._run_records = run_records
        self._records: list[bytes] = []
        self._runs: list[BinaryIO] = []

    def __repr__(self) -> str:
        return f"<Sorter {len(self._records)} records, {len(self._runs)} runs on disk>"

    def add(self, record: bytes) -> None:
        self._records.append(record)
        if self._directory is not None and len(self._records) >= self._run_records:
            self._spill(self._directory)

    def _spill(self, directory: Path) -> None:
        self._records.sort()
        run = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (closed by `close`)
        self._runs.append(run)
        for start in range(0, len(self._records), _BLOCK_RECORDS):
            block = _encode(self._records[start : start + _BLOCK_RECORDS])
            run.write(len(block).to_bytes(4, "big"))
            run.write(block)
        run.seek(0)
        self._records = []

    def __iter__(self) -> Iterator[bytes]:
        self._records.sort()
        if not self._runs:
            return iter(self._records)
        return heapq.merge(*map(_read, self._runs), self._records)

    def close(self) -> None:
        self._records = []
        for run in self._runs:
            run.close()
        self._runs = []


def _read(run: BinaryIO) -> Iterator[bytes]:
    while size := run.read(4):
        yield from _decode(run.read(int.from_bytes(size, "big")))
