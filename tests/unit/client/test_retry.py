import math
from random import Random

import pytest
import trio
from trio.testing import MockClock

from dfs.client.retry import OnUnavailable, Patience, worth_retrying
from dfs.core.errors import BusyError, ConfigError, DfsError, NoSpaceError, UnavailableError


def test_the_choices_are_read() -> None:
    assert OnUnavailable.parse("error").wait_s == 0
    assert OnUnavailable.parse("wait").wait_s == math.inf
    assert OnUnavailable.parse("wait:90s").wait_s == 90
    assert OnUnavailable.parse("wait:2m").wait_s == 120


@pytest.mark.parametrize("text", ["", "never", "wait:", "wait:soon", "Error"])
def test_other_choices_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="on_unavailable"):
        OnUnavailable.parse(text)


def test_what_is_worth_another_try() -> None:
    assert worth_retrying(UnavailableError("x"))
    assert not worth_retrying(UnavailableError("x", retry=False))
    assert worth_retrying(BusyError("x"))
    assert worth_retrying(DfsError("x", retry=True))
    assert not worth_retrying(NoSpaceError("x"))
    assert not worth_retrying(ValueError())


async def test_patience_ends_when_the_time_is_up(autojump_clock: MockClock) -> None:
    patience = Patience(OnUnavailable(10.0), Random(1))
    with pytest.raises(UnavailableError, match="gone"):
        while True:
            await patience.pause(UnavailableError("gone"))
    assert trio.current_time() == pytest.approx(10.0)
    assert 5 < patience.attempts < 30


async def test_without_patience_the_first_failure_is_the_last(autojump_clock: MockClock) -> None:
    patience = Patience(OnUnavailable(0.0), Random(1))
    with pytest.raises(UnavailableError):
        await patience.pause(UnavailableError("gone"))
    assert trio.current_time() == 0
