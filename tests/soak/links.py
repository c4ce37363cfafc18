"""Network links that can be cut: a process of proxies between the servers of a test's cluster.

A link listens on loopback and forwards to one target. Who connects says in the first frame what he
is (master, client, chunkserver), and a link is cut for some of these, or for all: then nothing gets
through in either direction and nobody is told, as when a switch dies. What was under way arrives
when the link is whole again.

`Links` is the test's side; `python -m tests.soak.links` is the process, told by lines of JSON.
"""

import json
import subprocess
import sys
from typing import Any, Final

import trio

from dfs.wire.hello import ROLES
from tests.cluster import environment

PIECE_BYTES: Final = 1 << 16


class Links:
    """Use as a context manager."""

    def __enter__(self) -> "Links":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.links"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def add(self, target: str) -> str:
        """A link to `target`; the address that it listens on."""
        return str(self._tell({"do": "add", "target": target}))

    def cut(self, link: str, *roles: str) -> None:
        """For these roles; without any, for all."""
        self._tell({"do": "cut", "link": link, "roles": roles or ROLES})

    def heal(self, link: str) -> None:
        self._tell({"do": "cut", "link": link, "roles": []})

    def _tell(self, order: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


# ------------------------------------------------------------------ the process


class _Link:
    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._cut: frozenset[str] = frozenset()
        self._changed = trio.Event()

    def set_cut(self, roles: list[str]) -> None:
        self._cut = frozenset(roles)
        self._changed.set()
        self._changed = trio.Event()

    async def serve(self, listener: trio.SocketListener) -> None:
        await trio.serve_listeners(self._forward, [listener])

    async def _forward(self, near: trio.SocketStream) -> None:
        try:
            async with near:
                first = await near.receive_some(PIECE_BYTES)
                role = next((role for role in ROLES if role.encode() in first), "")
                await self._open(role)
                async with await trio.open_tcp_stream(*self._target) as far:
                    await far.send_all(first)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._pipe, role, near, far, nursery.cancel_scope)
                        nursery.start_soon(self._pipe, role, far, near, nursery.cancel_scope)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # as a connection ends

    async def _open(self, role: str) -> None:
        while role in self._cut:
            await self._changed.wait()

    async def _pipe(
        self, role: str, source: trio.SocketStream, to: trio.SocketStream, end: trio.CancelScope
    ) -> None:
        try:
            while data := await source.receive_some(PIECE_BYTES):
                await self._open(role)
                await to.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await self._open(role)
        end.cancel()


async def _main() -> None:
    links: dict[str, _Link] = {}
    stdin = trio.wrap_file(sys.stdin)
    async with trio.open_nursery() as nursery:
        async for line in stdin:
            order = json.loads(line)
            answer: Any = None
            if order["do"] == "add":
                (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
                link = _Link(order["target"])
                nursery.start_soon(link.serve, listener)
                host, port = listener.socket.getsockname()
                answer = f"{host}:{port}"
                links[answer] = link
            else:
                links[order["link"]].set_cut(order["roles"])
            print(json.dumps(answer), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_main)
