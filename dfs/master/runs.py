"""Which changes that earlier runs of the master answered are still there.

A power cut takes the end of the log, and nothing else. So a change that one run answered at
some position is there exactly if the next run found the log to reach that far when it began.
That holds whatever became of the session that made the change.
"""

from collections.abc import Collection
from itertools import pairwise
from typing import Final

import msgspec

from dfs.master.keyspace import META_RUNS, Reader, Writer, encode
from dfs.wire.messages import LogPosition

KEPT: Final = 1024
"""Runs that are remembered. What a forgotten one answered counts as lost."""

_decode = msgspec.msgpack.Decoder(tuple[LogPosition, ...]).decode


def _began(reader: Reader) -> tuple[LogPosition, ...]:
    """The beginnings of all runs that are remembered, the last one is under way."""
    raw = reader.get(META_RUNS)
    return () if raw is None else _decode(raw)


def note(txn: Writer, beginning: LogPosition) -> None:
    """A run begins."""
    txn.put(META_RUNS, encode((*_began(txn), beginning)[-KEPT:]))


def all_survived(reader: Reader, answered: Collection[LogPosition]) -> bool:
    """Whether what earlier runs answered, up to these positions, is in the log."""
    if not answered:
        return True
    began = _began(reader)
    ends = {one.run: after.position for one, after in pairwise(began)}
    return len(answered) <= KEPT and all(
        each.position <= ends.get(each.run, -1) for each in answered
    )
