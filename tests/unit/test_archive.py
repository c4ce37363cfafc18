"""Archives: whole ones are read as they were written, and nothing else is taken for one."""

from random import Random

import pytest

from dfs.core import archive
from dfs.core.archive import ArchiveReader, ArchiveWriter, Description, Kind
from dfs.core.errors import ConfigError, CorruptError, DfsError

ABOUT = Description(
    cluster="11111111-2222", created_ns=5, dfs="0.1.0", schema=1, position=77, rows=3000
)
Rows = list[tuple[bytes, bytes]]


def rows(count: int) -> Rows:
    chance = Random(count)
    return [(b"i%08d" % number, chance.randbytes(chance.randrange(400))) for number in range(count)]


def written(content: Rows, about: Description = ABOUT) -> bytes:
    pieces: list[bytes] = []
    writer = ArchiveWriter(pieces.append, about)
    for key, value in content:
        writer.add(key, value)
    writer.finish()
    return b"".join(pieces)


def read(data: bytes, step: int = 1 << 20) -> Rows:
    reader = ArchiveReader()
    found: Rows = []
    for start in range(0, len(data), step):
        for block in reader.feed(data[start : start + step]):
            if block.kind is Kind.ROWS:
                found += block.pairs()
    reader.finish()
    assert reader.description == ABOUT
    assert reader.rows == len(found)
    return found


@pytest.mark.parametrize("count", [0, 1, 5000])
@pytest.mark.parametrize("step", [1, 47, 1 << 20])
def test_what_was_written_is_read_in_pieces_of_any_size(count: int, step: int) -> None:
    content = rows(count if step > 1 else min(count, 50))
    assert read(written(content), step) == content


def test_one_that_is_cut_anywhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "BLOCK_BYTES", 500)
    whole = written(rows(20))
    for end in range(len(whole)):
        with pytest.raises(CorruptError, match="cut short"):
            read(whole[:end])


def test_a_change_of_any_bit_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "BLOCK_BYTES", 500)
    whole = written(rows(8))
    for position in range(len(whole)):
        for bit in (0, 7):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            with pytest.raises(DfsError):
                read(bytes(damaged))


def blocks(data: bytes) -> list[bytes]:
    reader = ArchiveReader()
    found = []
    start = 0
    for block in reader.feed(data):
        end = start + archive.HEADER_BYTES + len(block.payload)
        found.append(data[start:end])
        start = end
    return found


def test_blocks_of_another_archive_or_place_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "BLOCK_BYTES", 500)
    ours, others = blocks(written(rows(20))), blocks(written(rows(21)))
    assert len(ours) > 5
    for mixed in (
        [ours[0], ours[2], ours[1], *ours[3:]],
        [*ours[:2], *ours[3:]],
        [*ours[:3], *others[3:]],
        [*ours, ours[-1]],
        ours[1:],
    ):
        with pytest.raises(DfsError):
            read(b"".join(mixed))


@pytest.mark.parametrize("data", [b"x", b"DFSX" + bytes(100), bytes(4096), b"PK\3\4" * 30])
def test_anything_else_is_no_backup(data: bytes) -> None:
    with pytest.raises(ConfigError, match="no backup"):
        read(data)


def test_nothing_at_all_is_cut_short() -> None:
    with pytest.raises(CorruptError, match="cut short"):
        read(b"")


def test_a_newer_version_says_so() -> None:
    data = bytearray(written([]))
    data[4] = archive.VERSION + 1
    with pytest.raises(ConfigError, match="version 2"):
        read(bytes(data))


def test_the_bytes_are_those_of_the_format() -> None:
    """Golden: what was backed up once has to be restored for ever (FORMAT.md)."""
    data = written([(b"i\0\0\0\0\0\0\0\1", b"root"), (b"mcluster", b"11111111-2222")])
    assert data.hex() == GOLDEN


GOLDEN = (
    "4446534201010000000000000000000047000000470000004a2d705bf845687e4a2d705bf845687e"
    "4f91cb63df4a081186a7636c7573746572ad31313131313131312d32323232aa637265617465645f"
    "6e7305a3646673a5302e312e30a6736368656d6101a8706f736974696f6e4da4726f7773cd0bb844"
    "4653420102000001000000020000002b0000002b000000d1ebd6eceb3d16aa577d2a8cc221eaceb6"
    "a63ff54375091d94c409690000000000000001c404726f6f74c4086d636c7573746572c40d313131"
    "31313131312d323232324446534201030000020000000000000007000000070000003d35e71a5bb9"
    "b8ea4f329dfafb591a397417993541774f4881a4726f777302"
)
