"""The state machine against a plain model of a POSIX file system, by random operations.

Two ways to choose them: Hypothesis, which shrinks what fails; and a seeded walk, which takes
many more steps in the same time and prints the seed that fails.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dfs.master import removal, sessions
from tests.unit.master.model import STEPS, Pair

Step = tuple[str, dict[str, Any]]

INLINE = [0, 1, 3, 128]
"""Rows freed inline: mostly few, so that the purge has work."""


@pytest.fixture(autouse=True)
def _limits() -> Iterator[None]:
    saved = removal.INLINE_ROWS, sessions.RELEASE_INLINE_ROWS
    yield
    set_inline(*saved)


def set_inline(rows: int, release: int) -> None:
    removal.INLINE_ROWS = rows  # type: ignore[misc]  # a constant everywhere but here
    sessions.RELEASE_INLINE_ROWS = release  # type: ignore[misc]


def steps() -> st.SearchStrategy[Step]:
    each = []
    for name, (weight, parameters) in STEPS.items():
        values = st.fixed_dictionaries({key: c.strategy() for key, c in parameters.items()})
        each += [st.tuples(st.just(name), values)] * weight
    return st.one_of(each)


class StateAgainstModel(RuleBasedStateMachine):
    @initialize(inline=st.sampled_from(INLINE))
    def start(self, inline: int) -> None:
        set_inline(inline, max(1, inline))
        self.directory = Path(tempfile.mkdtemp(prefix="dfs-model-"))
        self.pair = Pair(self.directory)

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            self.pair.close()
            shutil.rmtree(self.directory)

    @rule(step=steps())
    def step(self, step: Step) -> None:
        name, values = step
        getattr(self.pair, name)(**values)

    @precondition(lambda self: hasattr(self, "pair"))
    @invariant()
    def agrees(self) -> None:
        self.pair.check()


def run_machine(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        StateAgainstModel,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_state_agrees_with_a_plain_model_of_a_file_system() -> None:
    run_machine(50, 40)


@pytest.mark.long
def test_state_agrees_with_the_model_for_long() -> None:
    run_machine(1000, 100)


def run_walks(directory: Path, count: int) -> None:
    first = Random().randrange(1 << 32)
    for seed in range(first, first + count):
        print(f"seed {seed}")
        walk(directory / str(seed), seed, length=100)


def test_seeded_walks_agree_with_the_model(tmp_path: Path) -> None:
    run_walks(tmp_path, 20)


@pytest.mark.long
def test_many_seeded_walks_agree_with_the_model(tmp_path: Path) -> None:
    run_walks(tmp_path, 1000)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_walks_as_last_time(tmp_path: Path, seed: int) -> None:
    walk(tmp_path, seed, length=100)


def walk(directory: Path, seed: int, *, length: int) -> None:
    random = Random(seed)
    inline = random.choice(INLINE)
    set_inline(inline, max(1, inline))
    pair = Pair(directory)
    names = [name for name, (weight, _) in STEPS.items() for _ in range(weight)]
    for number in range(length):
        name = random.choice(names)
        values = {key: choice.pick(random) for key, choice in STEPS[name][1].items()}
        print(number, name, values)
        getattr(pair, name)(**values)
        pair.check()
    pair.close()
    shutil.rmtree(directory)
