"""`dfs admin backup`: an archive of a snapshot, handed to a client piece by piece.

The first piece asked for begins a backup; it ends with its last piece, or when nobody has asked
for one for a while. The process that writes it waits while nobody reads.
"""

import logging
from collections.abc import Mapping
from typing import Final

import trio

from dfs.core.errors import BusyError, DfsError, FileSystemError
from dfs.master.snapshots import Reading, Snapshots
from dfs.wire import messages as m
from dfs.wire.handlers import Handler, Peer, ReplyResult

AT_ONCE: Final = 2
KEPT_MAX: Final = 8
"""Backups, with those that have ended and whose last piece may be asked for again."""
PIECE_BYTES: Final = 1024 * 1024
IDLE_S: Final = 60.0
"""How long a backup waits for somebody to ask for its next piece."""

log = logging.getLogger(__name__)


class _Backup:
    """One backup: the piece that was handed out last can be had again."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.lock = trio.Lock()
        self.begun = trio.Event()
        self.ended = trio.Event()
        self.reading: Reading | None = None
        self.error: DfsError | None = None
        self.number = -1
        """Of the piece in `piece`."""
        self.piece = b""
        self.last = False
        self._buffer = bytearray()
        self.keep()

    def keep(self) -> None:
        """Somebody wants it, or may ask for the last piece again."""
        self.scope.deadline = trio.current_time() + IDLE_S

    async def advance(self) -> None:
        """Get the next piece ready. May be cancelled, and begun again, at any point."""
        assert self.reading is not None
        while len(self._buffer) < PIECE_BYTES:
            data = await self.reading.output.receive_some(PIECE_BYTES)
            if not data:
                await self.reading.check()
                self.last = True
                self.ended.set()
                break
            self._buffer += data
        self.piece = bytes(self._buffer)
        self._buffer.clear()
        self.number += 1


class BackupService:
    """The handler, and `run`, which looks after the processes."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots
        self._backups: dict[int, _Backup] = {}
        self._nursery: trio.Nursery | None = None

    def handlers(self) -> Mapping[type[m.Message], Handler]:
        return {m.ReadBackup: self.read}

    async def run(self) -> None:
        """For ever: what backups run in."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.sleep_forever()

    async def read(self, _: Peer, request: m.ReadBackup, __: memoryview) -> ReplyResult:
        backup = self._backups.get(request.nonce)
        if backup is None:
            backup = self._begin(request)
        backup.keep()
        async with backup.lock:
            await backup.begun.wait()
            if backup.error is not None:
                raise backup.error.again()
            if request.piece == backup.number + 1 and not backup.last:
                try:
                    await backup.advance()
                except trio.ClosedResourceError:
                    raise _given_up() from None
            if request.piece != backup.number:
                raise FileSystemError(
                    f"piece {request.piece} of the backup cannot be had: {backup.number} was last"
                )
            backup.keep()
            return m.BackupPiece(backup.last), (backup.piece,)

    def _begin(self, request: m.ReadBackup) -> _Backup:
        if request.piece:
            raise FileSystemError(
                "this backup was given up: the master was started anew, or nobody asked for "
                f"the next piece for {IDLE_S:.0f} s",
                hint="begin it again",
            )
        under_way = sum(not backup.last for backup in self._backups.values())
        if under_way >= AT_ONCE or len(self._backups) >= KEPT_MAX or self._nursery is None:
            raise BusyError(
                "as many backups are under way as may be", hint="wait until one has ended"
            )
        backup = self._backups[request.nonce] = _Backup()
        self._nursery.start_soon(self._attend, request.nonce, backup)
        return backup

    async def _attend(self, nonce: int, backup: _Backup) -> None:
        """Have a process write the backup, for as long as somebody wants it."""
        try:
            with backup.scope:
                async with self._snapshots.read_by("dfs.master.backup.process") as reading:
                    backup.reading = reading
                    backup.begun.set()
                    await backup.ended.wait()
                await trio.sleep_forever()
        except DfsError as error:
            backup.error = error
            log.warning("a backup failed: %s", error)
        except Exception:
            backup.error = DfsError("the backup failed", hint="the master's log has the reason")
            log.exception("a backup failed")
        finally:
            if backup.reading is None and backup.error is None:
                backup.error = _given_up()
            backup.begun.set()
            del self._backups[nonce]


def _given_up() -> DfsError:
    return DfsError("the backup was given up", hint="begin it again")
