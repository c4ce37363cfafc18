"""`dfs master` and `dfs chunkserver`: the servers, their settings from flags, environment, file.

A settings type has a field for each flag, under the flag's name: that is the name in the TOML
file, and with DFS_ before it in the environment.
"""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from dfs.cli.arguments import address, examples, local_path
from dfs.cli.failures import DONE
from dfs.cli.logs import start_logging
from dfs.cli.names import show
from dfs.core.config import Duration, Size, load_settings
from dfs.core.errors import ConfigError


class MasterSettings(msgspec.Struct, kw_only=True):
    data: str
    listen: str = ":9420"
    down_after: Duration = 60.0
    lease: Duration = 90.0
    keep_retired: Duration = 24 * 3600.0
    cache: Size = 16 * 1024 * 1024
    http: str = ""


class ChunkServerSettings(msgspec.Struct, kw_only=True):
    master: tuple[str, ...]
    disk: tuple[str, ...]
    listen: str = ":9421"
    advertise: str = ""
    rack: str = ""
    zone: str = ""
    capacity: Size | None = None
    http: str = ""


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        envvar="DFS_CONFIG",
        help="A TOML file with settings, named as the flags are. Flags win, then DFS_... "
        "variables, then the file.",
    ),
]
Listen = Annotated[
    str | None,
    typer.Option(metavar="[HOST]:PORT", help="Where to listen; without HOST on all interfaces."),
]

Http = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Also serve /metrics (Prometheus) and /health over HTTP here; off by default.",
    ),
]


def register(app: typer.Typer) -> None:
    app.command(
        "master",
        epilog=examples(
            "dfs master --data /var/lib/dfs --listen 10.0.0.1:9420",
            "dfs master --config /etc/dfs/master.toml",
        ),
    )(master)
    app.command(
        "chunkserver",
        epilog=examples(
            "dfs chunkserver --master 10.0.0.1:9420 --disk /data/a --disk /data/b --rack r1",
            "dfs chunkserver --config /etc/dfs/chunkserver.toml",
        ),
    )(chunkserver)


def master(
    data: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Where the metadata is kept; made if it is not there."),
    ] = None,
    listen: Listen = None,
    down_after: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="How long a chunk server may be silent until its fragments count as lost; 60s.",
        ),
    ] = None,
    lease: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="How long a client may be silent until what it holds open is released; 90s.",
        ),
    ] = None,
    keep_retired: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="How long chunks are kept for older backups of the metadata when their content "
            "has been written anew elsewhere; 24h.",
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for metadata that was read lately; 16M. The kernel caches too.",
        ),
    ] = None,
    http: Http = None,
    config: ConfigFile = None,
) -> int:
    """Run the metadata master until SIGTERM or SIGINT. Listens on port 9420 by default."""
    settings = load_settings(
        MasterSettings,
        flags={
            "data": data,
            "listen": listen,
            "down_after": down_after,
            "lease": lease,
            "keep_retired": keep_retired,
            "cache": cache,
            "http": http,
        },
        file=config,
    )
    data_directory = Path(local_path(settings.data, "--data")).absolute()
    _check_listening(settings)
    import trio

    from dfs.master.daemon import MasterConfig, run_master

    start_logging()
    trio.run(
        run_master,
        MasterConfig(
            data=data_directory,
            listen=settings.listen,
            lease_s=settings.lease,
            down_after_s=settings.down_after,
            keep_retired_s=settings.keep_retired,
            cache_bytes=settings.cache,
            http=settings.http,
        ),
    )
    return DONE


def chunkserver(
    master: Annotated[
        str | None, typer.Option(metavar="HOST:PORT[,...]", help="The master, or masters.")
    ] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR", help="A directory to keep fragments in. Repeated: one for each disk."
        ),
    ] = None,
    listen: Listen = None,
    advertise: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where clients reach this server, if not at what it listens on.",
        ),
    ] = None,
    rack: Annotated[
        str | None, typer.Option(metavar="NAME", help="The rack this server is in.")
    ] = None,
    zone: Annotated[
        str | None, typer.Option(metavar="NAME", help="The zone this server is in.")
    ] = None,
    capacity: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Fill at most so much of each disk, such as 500G; all by default."
        ),
    ] = None,
    http: Http = None,
    config: ConfigFile = None,
) -> int:
    """Run a chunk server until SIGTERM or SIGINT. Listens on port 9421 by default."""
    settings = load_settings(
        ChunkServerSettings,
        flags={
            "master": master,
            "disk": disk or None,
            "listen": listen,
            "advertise": advertise,
            "rack": rack,
            "zone": zone,
            "capacity": capacity,
            "http": http,
        },
        file=config,
    )
    _check_listening(settings)
    for name, addresses in (("master", settings.master), ("advertise", (settings.advertise,))):
        for each in filter(None, addresses):
            address(each, name)
    if settings.capacity == 0:
        raise ConfigError("capacity: 0 leaves no room for anything", hint="write for example 500G")
    disks = _disks(settings.disk)
    import trio

    from dfs.chunkserver.config import ChunkServerConfig
    from dfs.chunkserver.daemon import run_chunkserver

    start_logging()
    trio.run(
        run_chunkserver,
        ChunkServerConfig(
            master=settings.master,
            disks=disks,
            listen=settings.listen,
            advertise=settings.advertise,
            rack=settings.rack,
            zone=settings.zone,
            capacity_bytes=settings.capacity,
            http=settings.http,
        ),
    )
    return DONE


def _disks(paths: tuple[str, ...]) -> tuple[str, ...]:
    """The directories, absolute. Raises ConfigError where one is empty or given twice."""
    disks: list[str] = []
    for path in paths:
        # Not `abspath`: after a symbolic link, `..` is not what is written before it.
        disk = str(Path(local_path(path, "--disk")).absolute())
        if disk in disks:
            raise ConfigError(f"disk: {show(disk)} is given twice", hint="name each disk once")
        disks.append(disk)
    return tuple(disks)


def _check_listening(settings: MasterSettings | ChunkServerSettings) -> None:
    address(settings.listen, "listen", listening=True)
    if settings.http:
        address(settings.http, "http", listening=True)
