"""Which answers of earlier runs are still true after power cuts."""

import pytest

from dfs.master import commands, runs
from dfs.master.state import State
from dfs.wire.messages import LogPosition
from tests.simulation.power import PowerCutStore


class Machine:
    """A master's state on a machine that loses power."""

    def __init__(self) -> None:
        self.store = PowerCutStore()
        self.state = State(self.store)
        self.state.apply(commands.Format(1, "u"))
        self._session = 0

    def start(self, run: int) -> None:
        """As `Master` does: what a run notes of itself is on the disk before it answers."""
        self.state.apply(commands.StartMaster(1, run=run, position=self.store.position))
        self.store.sync()

    def change(self, run: int) -> LogPosition:
        self._session += 1
        self.state.apply(commands.OpenSession(1, "c", self._session))
        return LogPosition(run, self.store.position)

    def survived(self, *answered: LogPosition) -> bool:
        return runs.all_survived(self.store, answered)


@pytest.mark.parametrize("kept", range(4))
def test_what_the_log_was_cut_off_before_is_lost_and_nothing_else(kept: int) -> None:
    machine = Machine()
    machine.start(7)
    changes = [machine.change(7) for _ in range(3)]
    machine.store.cut_power(keep=kept)
    machine.start(8)
    assert [machine.survived(change) for change in changes] == [n < kept for n in range(3)]
    assert machine.survived(*changes) == (kept == 3)


def test_a_position_that_two_runs_gave_is_not_taken_for_the_other() -> None:
    machine = Machine()
    machine.start(7)
    lost = machine.change(7)
    machine.store.cut_power()
    machine.start(8)
    while machine.change(8).position < lost.position + 5:
        pass
    kept = machine.change(8)
    machine.start(9)
    assert not machine.survived(lost)
    assert machine.survived(kept)
    assert not machine.survived(kept, lost)


def test_answers_of_a_run_that_nobody_remembers_count_as_lost() -> None:
    machine = Machine()
    machine.start(1)
    change = machine.change(1)
    for run in range(2, runs.KEPT + 1):
        machine.start(run)
    assert machine.survived(change)
    machine.start(runs.KEPT + 1)
    assert not machine.survived(change)
    assert not machine.survived(LogPosition(0, 0))


def test_a_store_of_before_has_no_runs() -> None:
    machine = Machine()
    machine.state.apply(commands.StartMaster(1))
    assert machine.survived()
    assert not machine.survived(LogPosition(7, 1))
