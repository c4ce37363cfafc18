"""Users and groups as people write them: names of this machine, or numbers."""

import grp
import pwd
from typing import Final

from dfs.core.errors import ConfigError

_ID_MAX: Final = (1 << 32) - 2
"""The number above it means "leave as it is" to chown(2)."""


def user_id(text: str) -> int:
    """Raises ConfigError where there is no such user."""
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        return _number(text, "user")


def group_id(text: str) -> int:
    """Raises ConfigError where there is no such group."""
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        return _number(text, "group")


def parse_owner(text: str) -> tuple[int | None, int | None]:
    """`USER`, `USER:GROUP`, `:GROUP`, or `USER:` for the user's own group. None: leave it.

    Raises:
        ConfigError: there is no such user or group.
    """
    user, colon, group = text.partition(":")
    uid = user_id(user) if user else None
    if group:
        return uid, group_id(group)
    if uid is None:
        raise ConfigError(f"{text!r}: names no owner", hint="write USER, USER:GROUP or :GROUP")
    if not colon:
        return uid, None
    try:
        return uid, pwd.getpwuid(uid).pw_gid
    except KeyError:
        raise ConfigError(
            f"{text!r}: user {uid} has no group here", hint="name the group after the colon"
        ) from None


def _number(text: str, what: str) -> int:
    if text.isascii() and text.isdigit() and int(text) <= _ID_MAX:
        return int(text)
    raise ConfigError(f"{text!r}: no such {what} on this machine", hint="a number works too")
