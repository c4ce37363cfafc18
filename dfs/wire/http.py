"""The monitoring port of a server: `/metrics` for Prometheus, `/health` for probes and people.

Apart from the dfs protocol on purpose: a stuck or overloaded monitoring client must not cost a
request of a file system. Started only where `--http` is given, and then imported, since the
libraries take a moment to load. Called by the daemons.
"""

import socket
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import trio
from hypercorn.config import Config
from hypercorn.trio import serve as hypercorn_serve
from hypercorn.typing import ASGIFramework
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.core import Metric as PrometheusMetric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dfs.core.errors import ConfigError
from dfs.core.metrics import Metric
from dfs.wire.transport import format_address, parse_address

MetricsSource: TypeAlias = Callable[[], Iterable[Metric]]
"""Called at each scrape, on the event loop: has to be quick."""

ProblemsSource: TypeAlias = Callable[[], Iterable[str]]
"""What is wrong, a sentence each; none when healthy."""

GRACE_S = 1.0
"""How long an answer under way may take once the server stops."""


class _Collector(Collector):
    def __init__(self, source: MetricsSource) -> None:
        self._source = source

    def describe(self) -> Iterable[PrometheusMetric]:
        return ()

    def collect(self) -> Iterator[PrometheusMetric]:
        for metric in self._source():
            names = list(metric.samples[0].labels) if metric.samples else []
            family = GaugeMetricFamily(metric.name, metric.help, labels=names)
            for sample in metric.samples:
                family.add_metric([sample.labels[name] for name in names], sample.value)
            yield family


def monitoring_app(metrics: MetricsSource, problems: ProblemsSource) -> Starlette:
    """The two pages as an ASGI application."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(metrics))

    async def show_metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def show_health(_: Request) -> Response:
        found = list(problems())
        body = {"status": "degraded" if found else "ok", "problems": found}
        return JSONResponse(body, status_code=503 if found else 200)

    return Starlette(routes=[Route("/metrics", show_metrics), Route("/health", show_health)])


async def serve_http(
    listen: str,
    metrics: MetricsSource,
    problems: ProblemsSource,
    *,
    task_status: "trio.TaskStatus[str]" = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the monitoring port until cancelled; reports the address it is bound to.

    Raises:
        ConfigError: the address is malformed or in use.
    """
    try:
        host, number = parse_address(listen, listening=True)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, number), family=family, backlog=16)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {listen!r} for HTTP: {error}", hint="give --http another HOST:PORT"
        ) from error
    config = Config()
    config.accesslog = None
    config.errorlog = None
    config.graceful_timeout = GRACE_S
    bound = format_address(listener.getsockname())
    config.bind = [f"fd://{listener.detach()}"]
    app: ASGIFramework = monitoring_app(metrics, problems)  # type: ignore[assignment]
    stopping = trio.Event()

    async def run() -> None:
        # Hypercorn stops cleanly by its trigger, and noisily when it is cancelled.
        with trio.CancelScope(shield=True):
            await hypercorn_serve(app, config, shutdown_trigger=stopping.wait)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        try:
            task_status.started(bound)
            await trio.sleep_forever()
        finally:
            stopping.set()
