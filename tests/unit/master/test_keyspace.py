"""Stored bytes are a format: a master must read what an older one wrote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs.core.chunk import Chunk, ChunkState, Fragment
from dfs.core.inode import Extent, Inode
from dfs.core.policy import Policy
from dfs.core.redundancy import Redundancy
from dfs.master import keyspace as keys

IDS = st.integers(0, (1 << 64) - 1)


@pytest.mark.parametrize(
    ("key", "golden"),
    [
        (keys.inode_key(1), "690000000000000001"),
        (keys.dentry_key(1, b"a"), "64000000000000000161"),
        (keys.extent_key(2, 3), "6500000000000000020000000000000003"),
        (keys.trim_key(2, 3), "7400000000000000020000000000000003"),
        (keys.xattr_key(2, b"user.a"), "610000000000000002757365722e61"),
        (keys.chunk_key(4), "630000000000000004"),
        (
            keys.extent_by_chunk_key(4, 5, 2, 3),
            "7800000000000000040000000500000000000000020000000000000003",
        ),
        (keys.fragment_by_disk_key(6, 4), "6600000000000000060000000000000004"),
        (keys.doomed_key(6, 4), "6700000000000000060000000000000004"),
        (keys.policy_key(1), "700000000000000001"),
        (keys.policy_by_name_key("ec"), "6e6563"),
        (keys.server_key(7), "730000000000000007"),
        (keys.server_by_uuid_key("u"), "7675"),
        (keys.disk_key(6), "6b0000000000000006"),
        (keys.disk_by_uuid_key("u"), "6c75"),
        (keys.session_key(8), "530000000000000008"),
        (keys.session_by_nonce_key(-1, "c"), "4effffffffffffffff63"),
        (keys.open_key(2, 8), "6f00000000000000020000000000000008"),
        (keys.open_by_session_key(8, 2), "4f00000000000000080000000000000002"),
        (keys.chunk_by_session_key(8, 4), "6200000000000000080000000000000004"),
        (keys.retired_key(9, 4), "5200000000000000090000000000000004"),
        (keys.reply_key(8, 255), "72000000000000000800ff"),
        (keys.orphan_key(2), "750000000000000002"),
        (keys.purge_key(2), "710000000000000002"),
        (keys.leftovers_key(8), "7a0000000000000008"),
        (keys.META_SCHEMA, "6d736368656d61"),
        (keys.META_RUNS, "6d72756e73"),
    ],
)
def test_keys_have_their_bytes(key: bytes, golden: str) -> None:
    assert key.hex() == golden


def test_no_two_tables_share_a_prefix() -> None:
    tables = {
        name: value
        for name, value in vars(keys).items()
        if name.isupper() and isinstance(value, bytes) and len(value) == 1
    }
    assert len(set(tables.values())) == len(tables), tables
    assert keys.META_SCHEMA[:1] not in tables.values()


def test_values_of_schema_version_1_are_still_read() -> None:
    assert keys.SCHEMA_VERSION == 3
    inode = "dc001002cd81a401cd03e8320506070801090a0000c40000"
    assert keys.decode_inode(bytes.fromhex(inode)) == Inode(
        2, 0o100644, 1, 1000, 50, 5, 6, 7, 8, 1, 9, 10
    )
    extent = "9403040506"
    assert keys.decode_extent(bytes.fromhex(extent)) == Extent(3, 4, 5, 6)
    chunk = "9904020102010005059293000101930102" + "01"
    assert keys.decode_chunk(bytes.fromhex(chunk)) == Chunk(
        4, ChunkState.SEALED, 1, 2, 1, 0, 5, 5, (Fragment(0, 1), Fragment(1, 2))
    )
    policy = "9602a265639204020302c2"
    assert keys.decode_policy(bytes.fromhex(policy)) == Policy(2, "ec", Redundancy(4, 2), 3)
    with_appends = "dc0011" + inode.removeprefix("dc0010") + "90"
    for struct, golden in (
        (keys.decode_inode(bytes.fromhex(inode)), with_appends),
        (keys.decode_extent(bytes.fromhex(extent)), extent),
    ):
        assert keys.encode(struct).hex() == golden


def test_fields_added_later_have_defaults() -> None:
    """An inode as it was before its last six fields were thought of."""
    old = keys.encode((2, 0o100644, 1, 0, 0, 5, 6, 7, 8, 1))
    assert keys.decode_inode(old) == Inode(2, 0o100644, 1, 0, 0, 5, 6, 7, 8, 1)
    assert keys.decode_counters(keys.encode((5, 6))).next_chunk == 6


@given(IDS, IDS)
def test_keys_of_an_inode_are_in_order_of_offset(one: int, other: int) -> None:
    assert (keys.extent_key(7, one) < keys.extent_key(7, other)) == (one < other)
    assert (keys.inode_key(one) < keys.inode_key(other)) == (one < other)
    assert keys.extent_place(keys.extent_key(one, other)) == (one, other)
    assert keys.key_id(keys.open_key(one, other)) == one
    assert keys.second_id(keys.open_key(one, other)) == other


@given(st.binary(min_size=1, max_size=9), st.binary(max_size=20))
def test_a_prefix_ends_where_its_last_key_ends(prefix: bytes, rest: bytes) -> None:
    if prefix.strip(b"\xff"):
        assert prefix <= prefix + rest < keys.prefix_end(prefix)


def test_ids_out_of_range_have_no_key() -> None:
    for number in (-1, 1 << 64):
        with pytest.raises(OverflowError):
            keys.inode_key(number)
