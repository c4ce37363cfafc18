"""Storage policies in the state: the built-in ones, and those that people add."""

import errno

from msgspec.structs import replace as changed

from dfs.core import policy as rules
from dfs.core.errors import FileSystemError
from dfs.core.policy import BUILT_IN, Policy
from dfs.core.redundancy import Redundancy
from dfs.master import commands
from dfs.master.keyspace import (
    get_counters,
    policy_by_name_key,
    put_counters,
    put_policy,
)
from dfs.master.transaction import Transaction


def put_built_in(txn: Transaction) -> None:
    for policy in BUILT_IN:
        put_policy(txn, policy)


def create_policy(txn: Transaction, command: commands.CreatePolicy) -> Policy:
    """Raises EEXIST for a name in use, EINVAL for values out of range."""
    policy = _checked(command.policy)
    if txn.get(policy_by_name_key(policy.name)) is not None:
        raise FileSystemError(
            f"there is a policy {policy.name!r} already",
            errno=errno.EEXIST,
            hint="choose another name",
        )
    counters = get_counters(txn)
    policy = changed(policy, policy=counters.next_policy)
    put_counters(txn, changed(counters, next_policy=counters.next_policy + 1))
    put_policy(txn, policy)
    return policy


def _checked(policy: Policy) -> Policy:
    try:
        rules.parse_name(policy.name)
        rules.parse_compression(rules.format_compression(policy.compression))
        Redundancy.parse(str(policy.redundancy))
    except ValueError as error:
        raise FileSystemError(str(error), errno=errno.EINVAL) from error
    return policy
