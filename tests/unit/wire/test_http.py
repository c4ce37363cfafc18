"""The monitoring port over a real socket."""

import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterable

import pytest
import trio

from dfs.core.errors import ConfigError
from dfs.core.metrics import Metric, Sample, gauge
from dfs.wire.http import serve_http

problems: list[str] = []


def metrics() -> Iterable[Metric]:
    yield gauge("dfs_free_bytes", "Free bytes.", 42)
    yield Metric("dfs_up", "By server.", [Sample(1, {"server": "1"}), Sample(0, {"server": "2"})])
    yield Metric("dfs_none", "Of nothing yet.", [])


@pytest.fixture
async def address() -> AsyncIterator[str]:
    problems.clear()
    async with trio.open_nursery() as nursery:
        yield await nursery.start(serve_http, "127.0.0.1:0", metrics, lambda: problems)
        nursery.cancel_scope.cancel()


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_metrics_are_in_prometheus_text_format(address: str) -> None:
    status, body = await trio.to_thread.run_sync(fetch, f"http://{address}/metrics")
    assert status == 200
    assert "dfs_free_bytes 42.0\n" in body
    assert 'dfs_up{server="1"} 1.0\ndfs_up{server="2"} 0.0\n' in body


async def test_health_turns_503_and_names_the_problems(address: str) -> None:
    url = f"http://{address}/health"
    assert await trio.to_thread.run_sync(fetch, url) == (200, '{"status":"ok","problems":[]}')
    problems.append("disk 3 has failed")
    assert await trio.to_thread.run_sync(fetch, url) == (
        503,
        '{"status":"degraded","problems":["disk 3 has failed"]}',
    )


async def test_a_port_in_use_is_one_clear_error(address: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on .* give --http another"):
        await serve_http(address, metrics, lambda: problems)


@pytest.mark.parametrize("listen", ["nowhere", "127.0.0.1:99999", "127.0.0.1:x"])
async def test_a_bad_address_is_a_config_error(listen: str) -> None:
    with pytest.raises(ConfigError):
        await serve_http(listen, metrics, lambda: problems)


async def test_it_listens_on_ipv6_too() -> None:
    async with trio.open_nursery() as nursery:
        bound = await nursery.start(serve_http, "[::1]:0", metrics, lambda: problems)
        assert bound.startswith("[::1]:")
        status, _ = await trio.to_thread.run_sync(fetch, f"http://{bound}/metrics")
        assert status == 200
        nursery.cancel_scope.cancel()
