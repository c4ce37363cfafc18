"""A whole master over the simulated network: sessions, servers, reports, background work."""

import errno

import pytest
from trio.testing import MockClock

import trio
from dfs.core.chunk import ChunkState, DiskState, FragmentState
from dfs.core.errors import (
    BusyError,
    FileSystemError,
    NoSpaceError,
    ProtocolError,
    RedundancyError,
    SessionError,
    UnavailableError,
)
from dfs.core.ids import EC_POLICY, SCRATCH_POLICY
from dfs.core.inode import Extent
from dfs.core.policy import Policy
from dfs.core.redundancy import Redundancy
from dfs.wire import messages as m
from dfs.wire.hello import Hello
from dfs.wire.pool import Pool

from .grid import LEASE_S, MASTER, ROOT_CRED, StandIn, grid


def clock() -> MockClock:
    return MockClock(autojump_threshold=0)


@pytest.fixture
def autojump_clock() -> MockClock:
    return clock()


pytestmark = pytest.mark.usefixtures("autojump_clock")
