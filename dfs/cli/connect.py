"""From a command to the cluster: which master, one client, and a clean stop on Ctrl-C.

`options` holds what the user said before the command; the app's callback sets it once.
"""

import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dfs.cli.arguments import address
from dfs.cli.devcluster import DevCluster, default_directory
from dfs.cli.failures import StoppedError
from dfs.core.errors import ConfigError

if TYPE_CHECKING:
    from dfs.client import Client


@dataclass(slots=True)
class Options:
    """What the user said for every command."""

    master: str | None = None
    on_unavailable: str | None = None
    verbose: bool = False
    quiet: bool = False
    tracebacks: bool = False
    """Of what is a bug in dfs: in full."""


options: Final = Options()


def master_address() -> str:
    """Where the master is: --master, DFS_MASTER, or the local dev cluster that runs.

    Raises:
        ConfigError: none of them says, or what they say is no address.
    """
    if options.master is not None:
        return check_address(options.master, "--master")
    if named := os.environ.get("DFS_MASTER"):
        return check_address(named, "DFS_MASTER")
    with contextlib.suppress(ConfigError):
        running = DevCluster(default_directory()).running()
        if running is not None and "master" in running.alive():
            return running.master
    raise ConfigError(
        "which cluster? No master is named, and no local one runs",
        hint="give --master HOST:PORT, set DFS_MASTER, or start a local cluster with "
        "`dfs dev start`",
    )


def check_address(text: str, source: str) -> str:
    """`HOST:PORT[,HOST:PORT...]` as it was. Raises ConfigError that names `source`."""
    for one in text.split(","):
        address(one.strip(), source)
    return text


def run(body: "Callable[[Client], Awaitable[int]]") -> int:
    """Run `body` with a client of the cluster; its exit status.

    Raises:
        StoppedError: SIGINT, SIGTERM or SIGHUP came; what `body` had under way was cancelled.
        DfsError, OSError: as `body` raises them (perhaps in an exception group).
    """
    import trio

    from dfs.client import connect

    address = master_address()

    async def with_client() -> int:
        on_unavailable = options.on_unavailable or "wait:60s"
        async with connect(address, on_unavailable=on_unavailable) as client:

            async def work() -> int:
                async with trio.open_nursery() as nursery:
                    if options.on_unavailable is None:
                        # Beside the command, to which it costs nothing.
                        nursery.start_soon(client.meta.link.first_contact)
                    status = await body(client)
                    nursery.cancel_scope.cancel()
                return status

            # Inside, so that a client whose work was cancelled still says goodbye to the master.
            return await until_signalled(work)

    return trio.run(with_client)


async def until_signalled(body: Callable[[], Awaitable[int]]) -> int:
    """Run `body` under trio; a signal that asks to stop cancels it, and raises StoppedError."""
    import trio

    status = 0
    received = 0
    scope = trio.CancelScope()
    stop_signals = _stop_signals()

    async def watch(task_status: trio.TaskStatus[None]) -> None:
        nonlocal received
        if not stop_signals:
            task_status.started()
            return
        with trio.open_signal_receiver(*stop_signals) as numbers:
            task_status.started()
            async for number in numbers:
                if received:  # cleaning up takes too long for the user
                    os._exit(128 + number)
                received = number
                scope.cancel()

    async with trio.open_nursery() as nursery:
        await nursery.start(watch)
        with scope:
            status = await body()
        nursery.cancel_scope.cancel()
    if scope.cancelled_caught:
        raise StoppedError(received)
    return status


def _stop_signals() -> list[signal.Signals]:
    """Those that ask to stop, but for what our starter has us ignore (nohup, a shell's `&`)."""
    known = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in known if signal.getsignal(number) != signal.SIG_IGN]
