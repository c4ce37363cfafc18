"""Erasure coding: any k of k + m pieces give the data back, and only pieces that fit are taken."""

import itertools
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfs.core import erasure
from dfs.core.errors import CorruptError

SHAPES = st.tuples(st.integers(2, 16), st.integers(1, 6))


@settings(deadline=None)
@given(SHAPES, st.binary(min_size=1, max_size=5000), st.randoms(use_true_random=False))
def test_any_k_pieces_give_the_data(shape: tuple[int, int], data: bytes, random: Random) -> None:
    k, m = shape
    pieces = erasure.encode(data, k, m)
    assert {len(piece) for piece in pieces} == {erasure.piece_length(len(data), k)}
    chosen = random.sample(range(k + m), k)
    assert erasure.decode({index: pieces[index] for index in chosen}, len(data), k, m) == data


@settings(deadline=None)
@given(SHAPES, st.binary(min_size=1, max_size=5000), st.randoms(use_true_random=False))
def test_any_piece_is_rebuilt_from_k_others(
    shape: tuple[int, int], data: bytes, random: Random
) -> None:
    k, m = shape
    pieces = erasure.encode(data, k, m)
    missing = random.randrange(k + m)
    others = random.sample([index for index in range(k + m) if index != missing], k)
    rebuilt = erasure.rebuild({index: [pieces[index]] for index in others}, [missing], k, m)
    assert rebuilt == {missing: pieces[missing]}


def test_every_loss_of_two_is_survived_by_ec_4_2() -> None:
    data = bytes(range(256)) * 513
    pieces = erasure.encode(data, 4, 2)
    for kept in itertools.combinations(range(6), 4):
        assert erasure.decode({i: pieces[i] for i in kept}, len(data), 4, 2) == data


def test_data_pieces_are_the_data_itself() -> None:
    data = bytes(range(100))
    pieces = erasure.encode(memoryview(data), 3, 2)
    assert b"".join(pieces[:3]) == data + bytes(2)


def test_a_bytearray_can_be_encoded() -> None:
    assert bytes(erasure.encode(bytearray(b"abcd"), 2, 1)[0]) == b"ab"


def test_too_few_pieces_are_refused() -> None:
    pieces = erasure.encode(b"x" * 100, 4, 2)
    with pytest.raises(CorruptError, match="3 pieces are too few: any 4 of 4\\+2"):
        erasure.decode({i: pieces[i] for i in (0, 2, 5)}, 100, 4, 2)
    with pytest.raises(CorruptError, match="too few"):
        erasure.rebuild({i: [pieces[i]] for i in (0, 1, 2, 3)}, [0], 4, 2)


def test_a_piece_of_another_length_or_index_is_refused() -> None:
    pieces = dict(enumerate(erasure.encode(b"x" * 100, 4, 2)))
    with pytest.raises(CorruptError, match="piece 1 has 24 bytes"):
        erasure.decode(pieces | {1: pieces[1][:-1]}, 100, 4, 2)
    with pytest.raises(CorruptError, match="no piece 6"):
        erasure.decode(pieces | {6: pieces[1]}, 100, 4, 2)
    with pytest.raises(CorruptError, match="no piece 6"):
        erasure.rebuild({index: [piece] for index, piece in pieces.items()}, [6], 4, 2)
    with pytest.raises(CorruptError, match="25 and 24|24 and 25"):
        erasure.rebuild({1: [b"x" * 24], 2: [b"x" * 25], 3: [b""] * 3, 4: [b"x"] * 25}, [0], 4, 2)
