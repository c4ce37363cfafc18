"""Clients that change and read files all the time, and know what each file must hold.

A writer has a directory to itself and a model of it in memory: after each operation that returned,
the model is what any client must see. It verifies as it goes, by itself and through the session
of another client, and `verify` compares everything at the end. Whatever an operation raises is a
finding: clients wait for what is away, so that nothing may fail.
"""

import random
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio

import dfs.client
from dfs.client import Client

KEEP_BYTES: Final = 24_000_000
"""What one writer keeps at most."""
KEEP_FILES: Final = 60
SESSION_S: Final = (2.0, 15.0)
"""How long a writer keeps one session: its end seals what it has open."""


class FindingError(AssertionError):
    """What should never be: a file is not as it was acknowledged, or an operation failed."""


def content(rng: random.Random, size: int) -> bytes:
    """Random bytes, or text that compresses."""
    if rng.random() < 0.6:
        return rng.randbytes(size)
    line = b"%d the quick brown fox jumps over the lazy dog\n" % rng.getrandbits(64)
    return (line * (size // len(line) + 1))[:size]


def size(rng: random.Random) -> int:
    """Mostly small, some of several blocks, a few MiB now and then."""
    kind = rng.random()
    if kind < 0.05:
        return 0
    if kind < 0.7:
        return rng.randrange(1, 30_000)
    if kind < 0.95:
        return rng.choice((131_071, 131_072, 131_073, rng.randrange(30_000, 900_000)))
    return rng.randrange(1_000_000, 5_000_000)


class Writer:
    """One directory, its model, and the operations on it. Runs until `stop` is set."""

    def __init__(self, master: str, directory: str, policy: str, seed: str, scratch: Path) -> None:
        self.directory = directory
        self.policy = policy
        self.model: dict[str, bytes] = {}
        self.done = 0
        """Operations acknowledged."""
        self._master = master
        self._rng = random.Random(seed)
        self._scratch = scratch
        self._made = 0
        self._doing = ""
        self._operations: tuple[tuple[int, Callable[[Client], Awaitable[None]]], ...] = (
            (6, self._create),
            (5, self._append),
            (5, self._overwrite),
            (2, self._truncate),
            (3, self._rename),
            (4, self._unlink),
            (2, self._copy),
            (2, self._upload),
            (2, self._stream),
            (10, self._read),
        )

    def __repr__(self) -> str:
        return f"<Writer {self.directory} {len(self.model)} files, {self.done} operations>"

    async def prepare(self, client: Client) -> None:
        await client.mkdir(self.directory)
        await client.set_policy(self.directory, self.policy)

    async def run(self, stop: threading.Event, other: Client) -> None:
        """`other`: a client of another session, to read through."""
        weights = [weight for weight, _ in self._operations]
        while not stop.is_set():
            async with self.connect() as client:
                end = trio.current_time() + self._rng.uniform(*SESSION_S)
                while trio.current_time() < end and not stop.is_set():
                    _, operation = self._rng.choices(self._operations, weights)[0]
                    try:
                        reads = operation == self._read
                        await operation(self._one_of(client, other) if reads else client)
                    except FindingError:
                        raise
                    except Exception as error:
                        raise FindingError(f"{self._doing}: {error!r}") from error
                    self.done += 1
                    await trio.sleep(self._rng.random() * 0.05)
                self._doing = f"{self.directory}: end of session"

    def connect(self):
        return dfs.client.connect(self._master, on_unavailable="wait:300s", cache_bytes=1 << 20)

    def _one_of(self, *clients: Client) -> Client:
        return self._rng.choice(clients)

    # ---------------------------------------------------------------- operations

    def _new(self) -> str:
        self._made += 1
        return f"{self.directory}/f{self._made}"

    def _any(self) -> str | None:
        return self._rng.choice(sorted(self.model)) if self.model else None

    def _full(self) -> bool:
        total = sum(len(data) for data in self.model.values())
        return total > KEEP_BYTES or len(self.model) > KEEP_FILES

    async def _create(self, client: Client) -> None:
        if self._full():
            return await self._unlink(client)
        path = self._new() if self._rng.random() < 0.8 else (self._any() or self._new())
        data = content(self._rng, size(self._rng))
        self._doing = f"write {path}, {len(data)} bytes"
        await client.write_file(path, data)
        self.model[path] = data

    async def _append(self, client: Client) -> None:
        if (path := self._any()) is None or self._full():
            return
        data = content(self._rng, size(self._rng) // 4)
        self._doing = f"append {len(data)} bytes to {path}"
        async with await client.open(path, "a") as file:
            await file.write(data)
            if self._rng.random() < 0.3:
                await file.fsync()
        self.model[path] += data

    async def _overwrite(self, client: Client) -> None:
        if (path := self._any()) is None:
            return
        was = self.model[path]
        at = self._rng.randrange(len(was) + 1)
        data = content(self._rng, min(size(self._rng), 400_000))
        self._doing = f"overwrite {len(data)} bytes at {at} of {path}"
        async with await client.open(path, "r+") as file:
            await file.pwrite(data, at)
            if self._rng.random() < 0.3:
                await file.fsync()
        self.model[path] = was[:at] + data + was[at + len(data) :]

    async def _truncate(self, client: Client) -> None:
        if (path := self._any()) is None:
            return
        was = self.model[path]
        to = self._rng.randrange(len(was) + 5000)
        self._doing = f"truncate {path} from {len(was)} to {to}"
        await client.truncate(path, to)
        self.model[path] = was[:to] + bytes(max(0, to - len(was)))

    async def _rename(self, client: Client) -> None:
        """Also onto a file that is there."""
        if (path := self._any()) is None:
            return
        to = self._new() if self._rng.random() < 0.6 else (self._any() or self._new())
        self._doing = f"rename {path} to {to}"
        await client.rename(path, to)
        self.model[to] = self.model[path]
        if to != path:
            del self.model[path]

    async def _unlink(self, client: Client) -> None:
        if (path := self._any()) is None:
            return
        self._doing = f"unlink {path}"
        await client.unlink(path)
        del self.model[path]

    async def _copy(self, client: Client) -> None:
        if (path := self._any()) is None or self._full():
            return
        to = self._new()
        self._doing = f"copy {path} to {to}"
        await client.copy(path, to)
        self.model[to] = self.model[path]

    async def _upload(self, client: Client) -> None:
        """Many small files at once, and perhaps a big one."""
        if self._full():
            return
        files = {}
        for _ in range(self._rng.randrange(1, 12)):
            path = self._new()
            local = self._scratch / path.rpartition("/")[2]
            files[path] = content(self._rng, size(self._rng))
            local.write_bytes(files[path])
        locals_ = [self._scratch / path.rpartition("/")[2] for path in files]
        self._doing = f"upload {len(files)} files to {self.directory}"
        summary = await client.upload(locals_, self.directory)
        if summary.failures:
            raise FindingError(f"{self._doing}: {summary.failures}")
        self.model |= files
        for local in locals_:
            local.unlink()

    async def _stream(self, client: Client) -> None:
        """A file that is open for long, published again and again, read while it is written."""
        path = self._new()
        written = b""
        self._doing = f"stream to {path}"
        async with await client.open(path, "w+") as file:
            for _ in range(self._rng.randrange(2, 8)):
                data = content(self._rng, self._rng.randrange(200_000))
                await file.write(data)
                written += data
                await (file.fsync if self._rng.random() < 0.3 else file.flush)()
                at = self._rng.randrange(len(written) + 1)
                if await file.pread(50_000, at) != written[at : at + 50_000]:
                    raise FindingError(f"{path} is not what was written, at {at}")
                await trio.sleep(self._rng.random() * 0.3)
        self.model[path] = written

    async def _read(self, client: Client) -> None:
        if (path := self._any()) is not None:
            self._doing = f"read {path}"
            await check_file(client, path, self.model[path])

    # ---------------------------------------------------------------- all of it

    async def verify(self, client: Client) -> int:
        """Compare the directory with the model; how many files there are."""
        names = {
            f"{self.directory}/{entry.name.decode()}"
            async for entry in client.scandir(self.directory)
        }
        if names != self.model.keys():
            raise FindingError(
                f"{self.directory}: lost {sorted(self.model.keys() - names)}, "
                f"unexpected {sorted(names - self.model.keys())}"
            )
        for path, data in self.model.items():
            await check_file(client, path, data)
        return len(names)


async def check_file(client: Client, path: str, data: bytes) -> None:
    found = await client.read_file(path)
    if found == data:
        return
    at = next((i for i, (a, b) in enumerate(zip(found, data, strict=False)) if a != b), None)
    raise FindingError(
        f"{path}: {len(found)} bytes, {len(data)} were acknowledged"
        + ("" if at is None else f", the first that differs is byte {at}")
    )


class Load:
    """All writers, in a thread of their own: the main thread starts and ends processes."""

    def __init__(self, master: str, policies: list[str], seed: int, scratch: Path) -> None:
        self.writers = []
        for number, policy in enumerate(policies, 1):
            place = scratch / f"writer{number}"
            place.mkdir(parents=True)
            name = f"/{policy}-{number}"
            self.writers.append(Writer(master, name, policy, f"{seed} {number}", place))
        self.error: BaseException | None = None
        self._master = master
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def check(self) -> None:
        """Raises what a writer found."""
        if self.error is not None:
            raise self.error

    def stop(self, timeout_s: float) -> None:
        """Let each finish what it is at."""
        self._stop.set()
        self._thread.join(timeout_s)
        self.check()
        if self._thread.is_alive():
            doing = [writer._doing for writer in self.writers]
            raise FindingError(f"clients have not ended after {timeout_s:g} s: {doing}")

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            self.error = error

    async def _main(self) -> None:
        async with dfs.client.connect(self._master, on_unavailable="wait:300s") as other:
            for writer in self.writers:
                await writer.prepare(other)
            async with trio.open_nursery() as nursery:
                for writer in self.writers:
                    nursery.start_soon(writer.run, self._stop, other)

    @property
    def done(self) -> int:
        return sum(writer.done for writer in self.writers)
