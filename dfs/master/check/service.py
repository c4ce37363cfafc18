"""`dfs admin fsck`: one check at a time, begun, watched and given up by a client.

The metadata are checked in a process of their own, on a snapshot; repairs are commands like any
other, a few at a time, and after each stage of them the check begins anew. Then the disks are
compared. A check that nobody asks about any more is given up.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from itertools import islice
from typing import Final

import msgspec
import trio

from dfs.core.errors import BusyError, DfsError, FileSystemError
from dfs.master.check.disks import check_disks
from dfs.master.check.fixes import AnyFix
from dfs.master.check.log import CheckLog
from dfs.master.check.problem import Problem
from dfs.master.check.process import Broke, Counted, Finished, Found, Said
from dfs.master.check.repair import by_stage
from dfs.master.commands import MendMetadata
from dfs.master.jobs.context import JobContext
from dfs.master.pipes import read_messages
from dfs.master.snapshots import Snapshots
from dfs.wire import messages as m
from dfs.wire.handlers import Handler, Peer

WATCHED_S: Final = 3.0
"""A check that nobody has asked about for so long may be given up for a new one."""
ROUNDS_MAX: Final = 50
"""Checks of one repair; each but the last has mended something."""
FIXES_AT_ONCE: Final = 50
"""In one command: some milliseconds."""

log = logging.getLogger(__name__)

_decoder: Final = msgspec.msgpack.Decoder(Said)


class _Check:
    def __init__(self, number: int, nonce: int, repair: bool) -> None:
        self.number = number
        self.nonce = nonce
        self.repair = repair
        self.log = CheckLog()
        self.scope = trio.CancelScope()
        self.keep()

    def keep(self) -> None:
        """Somebody watches it."""
        self._asked_at = trio.current_time()
        self.scope.deadline = self._asked_at + m.CHECK_IDLE_S

    @property
    def is_watched(self) -> bool:
        return trio.current_time() - self._asked_at < WATCHED_S


class _Found(msgspec.Struct):
    """What one look at a snapshot brought."""

    problems: list[Problem]
    counted: Finished


class CheckService:
    """Handlers for checks, and `run`, which does them."""

    def __init__(
        self, context: JobContext, snapshots: Snapshots, notices: Callable[[], Sequence[str]]
    ) -> None:
        """`notices`: what people should know beside what a check finds."""
        self._context = context
        self._snapshots = snapshots
        self._notices = notices
        self._check: _Check | None = None
        self._begun = 0
        self._wanted = trio.Event()

    def handlers(self) -> Mapping[type[m.Message], Handler]:
        return {m.StartCheck: self.start, m.ReadCheck: self.read}

    def start(self, _: Peer, request: m.StartCheck, __: memoryview) -> m.CheckStarted:
        check = self._check
        if check is not None and check.nonce == request.nonce:
            return m.CheckStarted(check.number)
        if check is not None and not check.log.finished:
            if check.is_watched:
                raise BusyError("a check is under way already", hint="wait until it has ended")
            check.scope.cancel()
        self._begun += 1
        self._check = _Check(self._begun, request.nonce, request.repair)
        self._wanted.set()
        return m.CheckStarted(self._begun)

    def read(self, _: Peer, request: m.ReadCheck, __: memoryview) -> m.CheckReply:
        check = self._check
        if check is None or check.number != request.check:
            raise FileSystemError(
                f"there is no check {request.check}: the master was started anew, or another "
                "check took its place",
                hint="run dfs admin fsck again",
            )
        check.keep()
        return check.log.reply(max(0, request.after))

    # ------------------------------------------------------------------ the work

    async def run(self) -> None:
        """Do the checks that are asked for, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            check = self._check
            if check is None:
                continue
            with check.scope:
                await self._do(check)
            if check.scope.cancelled_caught:
                check.log.finish("it was given up: nobody watched it")

    async def _do(self, check: _Check) -> None:
        error = ""
        try:
            found = await self._check_metadata(check)
            lost = await check_disks(self._context, check.log, repair=check.repair)
            if check.repair and lost and await self._mend(check.log, lost):
                found = await self._check_metadata(check)
            else:
                found.problems += lost
            self._tell(check, found)
            await self._context.journal.sync()
            for notice in self._notices():
                check.log.note(notice)
        except DfsError as failure:
            error = str(failure)
        except Exception:
            log.exception("the check failed")
            error = "the check failed; the master's log has the reason"
        check.log.finish(error)

    async def _check_metadata(self, check: _Check) -> _Found:
        """Check, and with `repair` mend and check again; what is left."""
        for _ in range(ROUNDS_MAX):
            found = await self._look(check.log)
            if not (check.repair and await self._mend(check.log, found.problems)):
                break
        return found

    def _tell(self, check: _Check, found: _Found) -> None:
        left = m.Outcome.LEFT if check.repair else m.Outcome.FOUND
        counted = found.counted
        for problem in found.problems:
            check.log.add(problem.text, left, problem.todo)
        if counted.untold:
            more = f"and {counted.untold} more; they are told once the others are mended"
            check.log.add(more, left, count=counted.untold)
        check.log.inodes, check.log.chunks = counted.inodes, counted.chunks
        if counted.lost or counted.corrupt:
            check.log.note(
                f"{counted.lost} fragments are noted as lost and {counted.corrupt} as corrupt: "
                "dfs admin status says what that endangers"
            )

    async def _look(self, told: CheckLog) -> _Found:
        """Check a fresh snapshot."""
        told.begin("checking metadata")
        problems: list[Problem] = []
        async with (
            self._snapshots.read_by("dfs.master.check.process") as reading,
            aclosing(read_messages(reading.output, _decoder)) as messages,
        ):
            async for said in messages:
                match said:
                    case Counted(rows, of):
                        told.reach(rows, of)
                    case Found(problem):
                        problems.append(problem)
                    case Broke(reason):
                        raise DfsError(reason)
                    case Finished():
                        return _Found(problems, said)
        raise DfsError("the process that checks the metadata died", hint="see the master's log")

    async def _mend(self, told: CheckLog, problems: list[Problem]) -> bool:
        """Make the fixes of the first stage that has an effect; whether one had."""
        for stage in by_stage(problems):
            told.begin("repairing metadata", len(stage))
            fixes = iter(stage.items())
            changed = False
            while part := dict(islice(fixes, FIXES_AT_ONCE)):
                changed |= self._apply(told, part)
                told.advance(len(part))
                await trio.lowlevel.checkpoint()
            if changed:
                return True
        return False

    def _apply(self, told: CheckLog, part: dict[AnyFix, Problem]) -> bool:
        command = MendMetadata(self._context.now_ns(), tuple(part))
        effects = self._context.journal.append(command)
        changed = False
        for problem, effect in zip(part.values(), effects, strict=True):
            if effect:
                told.add(problem.text, m.Outcome.REPAIRED)
                changed = True
        return changed
