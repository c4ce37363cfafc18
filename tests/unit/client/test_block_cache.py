from dfs.client.block_cache import BlockCache


def blocks(*starts: int, size: int = 100) -> list[tuple[int, memoryview]]:
    return [(start, memoryview(bytes([start % 251]) * size)) for start in starts]


def test_a_block_is_found_by_any_of_its_bytes() -> None:
    cache = BlockCache(10_000)
    cache.put(7, blocks(0, 100, 300), 300)
    for offset, start in ((0, 0), (99, 0), (100, 100), (199, 100), (300, 300), (399, 300)):
        found = cache.get(7, offset)
        assert found is not None
        assert found[0] == start
    assert cache.get(7, 200) is None
    assert cache.get(7, 400) is None
    assert cache.get(8, 0) is None


def test_the_next_start_tells_how_far_to_fetch() -> None:
    cache = BlockCache(10_000)
    cache.put(7, blocks(300), 100)
    assert cache.next_start(7, 0, 1000) == 300
    assert cache.next_start(7, 0, 200) == 200
    assert cache.next_start(7, 350, 1000) == 1000
    assert cache.next_start(8, 0, 1000) == 1000


def test_blocks_that_share_memory_go_together_and_the_oldest_first() -> None:
    cache = BlockCache(3 * (200 + 512))
    cache.put(1, blocks(0, 100), 200)
    cache.put(1, blocks(200, 300), 200)
    cache.put(2, blocks(0, 100), 200)
    assert cache.get(1, 0) is not None  # now the other one is the oldest
    cache.put(3, blocks(0, 100), 200)
    assert cache.get(1, 200) is None
    assert cache.get(1, 300) is None
    assert all(cache.get(chunk, 100) is not None for chunk in (1, 2, 3))
    assert cache.used_bytes <= cache.capacity_bytes


def test_known_blocks_are_not_counted_twice() -> None:
    cache = BlockCache(10_000)
    cache.put(1, blocks(0), 100)
    used = cache.used_bytes
    cache.put(1, blocks(0), 100)
    assert cache.used_bytes == used
    cache.clear()
    assert cache.used_bytes == 0
    assert cache.get(1, 0) is None


def test_what_was_put_for_once_goes_when_all_of_it_was_read() -> None:
    cache = BlockCache(10_000)
    cache.put(1, blocks(0, 100), 200, once=True)
    cache.put(1, blocks(200), 100)
    for start, length in ((100, 100), (0, 60), (200, 100), (200, 100)):
        cache.was_read(1, start, length)
        assert cache.get(1, 0) is not None
    cache.was_read(1, 0, 40)
    assert cache.get(1, 0) is None
    assert cache.get(1, 100) is None
    assert cache.get(1, 200) is not None
    cache.was_read(1, 0, 40)
    cache.was_read(2, 0, 40)
    cache.clear()
    assert cache.used_bytes == 0


def test_what_does_not_fit_is_not_cached() -> None:
    cache = BlockCache(0)
    cache.put(1, blocks(0), 100)
    assert cache.get(1, 0) is None
    assert cache.used_bytes == 0
