"""Erasure coding of blocks: any k of k + m pieces give the bytes back (pyeclib lives here only).

The code is ISA-L's systematic Cauchy Reed-Solomon (`isa_l_rs_cauchy`): pieces 0 to k - 1 are the
data itself, cut into k slices of `piece_length` bytes, the last ones padded with zeros; pieces k to
k + m - 1 are parity. pyeclib puts a header of 80 bytes before each piece that depends on nothing
but (k, m, index, length), so it is not stored: it is taken off here, and made again for a decode
by encoding zeros. Everything here is pure and may be called from any thread; pyeclib releases the
GIL while it works.
"""

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, Final

from pyeclib.ec_iface import ECDriver, ECDriverError

from dfs.core.buffers import Buffer
from dfs.core.errors import CorruptError

_FOREIGN_HEADER_BYTES: Final = 80
_BACKEND: Final = "isa_l_rs_cauchy"
_GRAIN_BYTES: Final = 64 * 1024
"""Lengths of pieces that are rebuilt together are rounded up to this: few headers are needed."""


def piece_length(length: int, k: int) -> int:
    """Bytes of each of the k + m pieces that `length` bytes are cut into."""
    return -(-length // k)


def encode(data: Buffer, k: int, m: int) -> list[memoryview]:
    """The k + m pieces of `data` (not empty), by index, each `piece_length` bytes."""
    pieces = _driver(k, m).encode(data if isinstance(data, bytes) else bytes(data))
    return [memoryview(piece)[_FOREIGN_HEADER_BYTES:] for piece in pieces]


def decode(pieces: Mapping[int, Buffer], length: int, k: int, m: int) -> bytes | memoryview:
    """The `length` bytes that the pieces (index -> piece, at least k of them) were made from.

    The pieces must be intact: nothing here notices a wrong one; callers check their checksums.

    Raises:
        CorruptError: fewer than k pieces, or pieces of a wrong length or index.
    """
    size = _checked_size(pieces, length, k, m)
    if all(index in pieces for index in range(k)):
        joined = b"".join([pieces[index] for index in range(k)])
    else:
        dressed = _dress(pieces, size, k, m)
        try:
            joined = _driver(k, m).decode(dressed)
        except ECDriverError as error:
            raise CorruptError(f"cannot decode {k}+{m} pieces of {size} bytes: {error}") from error
    return joined if len(joined) == length else memoryview(joined)[:length]


def rebuild(
    pieces: Mapping[int, Sequence[Buffer]], missing: Sequence[int], k: int, m: int
) -> dict[int, memoryview]:
    """Pieces `missing` of many blocks, one behind the other, from the same k others of each.

    The code works byte by byte: what stands one behind the other is coded as one. So it takes one
    call without the GIL, however many blocks there are.

    Raises:
        CorruptError: fewer than k pieces, a wrong index, or not the same length of each.
    """
    for index in (*pieces, *missing):
        if not 0 <= index < k + m:
            raise CorruptError(f"{k}+{m} pieces have no piece {index}")
    chosen = sorted(pieces.keys() - set(missing))[:k]
    if len(chosen) < k:
        raise CorruptError(f"{len(chosen)} pieces are too few: any {k} of {k}+{m} are needed")
    length, *others = {sum(map(len, pieces[index])) for index in chosen}
    if others:
        raise CorruptError(f"the pieces of {k}+{m} are {length} and {others[0]} bytes long")
    size = -(-length // _GRAIN_BYTES) * _GRAIN_BYTES
    headers, padding = _headers(size, k, m), bytes(size - length)
    dressed = [b"".join((headers[index], *pieces[index], padding)) for index in chosen]
    try:
        rebuilt = _driver(k, m).reconstruct(dressed, list(missing))
    except ECDriverError as error:
        raise CorruptError(f"cannot rebuild pieces {missing} of {k}+{m}: {error}") from error
    start = _FOREIGN_HEADER_BYTES
    return {
        index: memoryview(piece)[start : start + length]
        for index, piece in zip(missing, rebuilt, strict=True)
    }


def _checked_size(pieces: Mapping[int, Buffer], length: int, k: int, m: int) -> int:
    size = piece_length(length, k)
    if len(pieces) < k:
        raise CorruptError(f"{len(pieces)} pieces are too few: any {k} of {k}+{m} are needed")
    for index, piece in pieces.items():
        if not 0 <= index < k + m:
            raise CorruptError(f"{k}+{m} pieces have no piece {index}")
        if len(piece) != size:
            raise CorruptError(
                f"piece {index} has {len(piece)} bytes; {length} bytes in {k} pieces give {size}"
            )
    return size


def _dress(pieces: Mapping[int, Buffer], size: int, k: int, m: int) -> list[bytes]:
    """pyeclib's headers before k of the pieces (data first: less to compute)."""
    headers = _headers(size, k, m)
    chosen = sorted(pieces)[:k]
    if len(chosen) < k:
        raise CorruptError(f"{len(chosen)} pieces are too few: any {k} of {k}+{m} are needed")
    return [headers[index] + pieces[index] for index in chosen]


@cache
def _driver(k: int, m: int) -> Any:
    return ECDriver(k=k, m=m, ec_type=_BACKEND)


@lru_cache(maxsize=1024)
def _headers(size: int, k: int, m: int) -> tuple[bytes, ...]:
    """pyeclib's headers of pieces of `size` bytes, as if the data filled them to the last byte.

    The true length is cut by `decode`, so that one entry serves all lengths of a piece size.
    """
    pieces = _driver(k, m).encode(bytes(size * k))
    return tuple(piece[:_FOREIGN_HEADER_BYTES] for piece in pieces)
