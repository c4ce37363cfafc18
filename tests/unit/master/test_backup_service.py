"""Backups that cannot be made: whoever asks for one hears why, and the master lives on."""

import sys
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from dfs.core.errors import DfsError
from dfs.master.backup.service import IDLE_S, BackupService
from dfs.master.snapshots import Snapshots
from dfs.wire import messages as m
from dfs.wire.handlers import Peer
from dfs.wire.hello import Hello
from tests.unit.master.grid import InlineWorkers
from tests.unit.master.rig import Rig
from tests.unit.master.test_check_service import StuckWorkers

PEER = Peer("test", Hello("client"))


@pytest.mark.allow_logs("a backup failed")
async def test_a_backup_whose_process_cannot_be_started_is_an_error_of_the_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = BackupService(Snapshots(tmp_path / "snapshots", Rig().store, InlineWorkers()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run)
        await trio.testing.wait_all_tasks_blocked()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", str(tmp_path / "no-such-program"))
            with pytest.raises(DfsError, match="cannot be started: No such file"):
                await service.read(PEER, m.ReadBackup(1, 0), memoryview(b""))
        reply = await service.read(PEER, m.ReadBackup(2, 0), memoryview(b""))
        assert isinstance(reply, tuple)
        assert reply[0] == m.BackupPiece(True)
        nursery.cancel_scope.cancel()
    assert not list((tmp_path / "snapshots").iterdir())


async def test_who_waits_for_a_snapshot_that_never_comes_hears_that_the_backup_was_given_up(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    service = BackupService(Snapshots(tmp_path / "snapshots", Rig().store, StuckWorkers()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(IDLE_S + 1), pytest.raises(DfsError, match="given up"):
            await service.read(PEER, m.ReadBackup(1, 0), memoryview(b""))
        nursery.cancel_scope.cancel()
