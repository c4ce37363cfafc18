"""What a mount can be told: `MountOptions`, and how `-o OPT,...` is read.

Made by the command line; the mount and its drivers read it. Options that `/etc/fstab` and mount(8)
know and that mean nothing here are accepted, others are refused by name.
"""

import difflib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, cast, get_args

from dfs.client.retry import OnUnavailable
from dfs.core.errors import ConfigError
from dfs.core.units import parse_duration, parse_size

Driver = Literal["auto", "fusepy", "pyfuse3"]

CACHE_BYTES: Final = 512 * 1024 * 1024
ATTR_CACHE_S: Final = 1.0
ON_UNAVAILABLE: Final = "wait:60s"
SUBTYPE: Final = "dfs"
"""The kernel shows the type of a mount as `fuse.dfs`."""
_MAX_READ_LEAST: Final = 4096

_FLAGS: Final = {
    name: pair
    for pair in (("nosuid", "suid"), ("nodev", "dev"), ("noexec", "exec"), ("noatime", "atime"))
    for name in pair
}
"""What the kernel looks at, each with its opposite; the later of two holds."""

_IGNORED: Final = frozenset(
    "async auto defaults default_permissions diratime group iversion lazytime mand noauto "
    "nodiratime nofail noiversion nolazytime nomand norelatime nostrictatime nouser owner "
    "relatime strictatime use_ino user users _netdev".split()
)
"""Said to mount(8) or to systemd, or how it is anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """One mount, as asked for."""

    point: str
    """Absolute and without symlinks; bytes that are no UTF-8 as surrogate escapes (PEP 383)."""
    root: bytes = b"/"
    """The directory of the cluster that appears at `point`."""
    driver: Driver = "auto"
    read_only: bool = False
    allow_other: bool = False
    """Other users than the one who mounts may use it, as permissions allow."""
    cache_bytes: int = CACHE_BYTES
    """Memory for data: what is being written, and the rest for what was read."""
    attr_cache_s: float = ATTR_CACHE_S
    """How long attributes and names are believed."""
    sync_names: bool = False
    """The master is told of each new, removed or renamed file before the program goes on."""
    on_unavailable: str | None = None
    """None: as `ON_UNAVAILABLE` says, but a master that does not answer at all ends it soon."""
    fsname: str = ""
    """What `df` and `mount` show as the device."""
    profile: bool = False
    """Say in the log, at the end, how often each operation was called, and how long it took."""
    log_file: str | None = None
    """None: standard error."""
    kernel_flags: tuple[str, ...] = ()
    """Such as nosuid or noatime."""
    max_read_bytes: int | None = None

    @property
    def fuse_options(self) -> tuple[str, ...]:
        """Those for libfuse's `-o` that every driver wants; the driver adds its own."""
        words = [
            "default_permissions",
            f"fsname={_escape(self.fsname or SUBTYPE)}",
            f"subtype={SUBTYPE}",
        ]
        words.append("ro" if self.read_only else "rw")
        if self.allow_other:
            words.append("allow_other")
        if self.max_read_bytes is not None:
            words.append(f"max_read={self.max_read_bytes}")
        flags = set(self.kernel_flags)
        if os.geteuid() == 0:
            # libfuse leaves both out where it is not told, also for root.
            flags |= {yes for no, yes in (("nosuid", "suid"), ("nodev", "dev")) if no not in flags}
        else:
            flags -= {"suid", "dev"}
        return (*words, *sorted(flags))


def with_words(options: MountOptions, texts: Iterable[str]) -> MountOptions:
    """`options` changed by `-o` texts, each some words with commas between them.

    Raises:
        ConfigError: a word is unknown, or its value is not right; names it.
    """
    for text in texts:
        for word in text.split(","):
            if word := word.strip():
                options = _with_word(options, word)
    return options


def _with_word(options: MountOptions, word: str) -> MountOptions:
    name, equals, value = word.partition("=")
    if name in _IGNORED or name.startswith("x-") or name == "comment":
        return options
    if name in _SWITCHES or name in _FLAGS:
        if equals:
            raise ConfigError(f"-o {word}: takes no value", hint=f"write {name}")
        if name in _SWITCHES:
            return replace(options, **_SWITCHES[name])
        kept = [flag for flag in options.kernel_flags if flag not in _FLAGS[name]]
        return replace(options, kernel_flags=(*kept, name))
    if name not in _VALUES:
        raise _unknown(name)
    field, form, parse = _VALUES[name]
    if not value:
        raise ConfigError(f"-o {word}: its value is missing", hint=f"write {name}={form}")
    try:
        return replace(options, **{field: parse(value)})
    except ConfigError as error:
        raise ConfigError(f"-o {word}: {error.message}", hint=error.hint) from None


def _unknown(name: str) -> ConfigError:
    if name in ("sync", "dirsync"):
        return ConfigError(
            f"-o {name}: a dfs mount cannot do this", hint="programs that need it call fsync(2)"
        )
    own = [*_SWITCHES, *_VALUES]
    close = difflib.get_close_matches(name, [*own, *_FLAGS, *_IGNORED], n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(own))}"
    return ConfigError(f"-o {name}: no such mount option", hint=hint)


def parse_driver(text: str) -> Driver:
    """Raises ConfigError where there is no such driver."""
    if text not in get_args(Driver):
        raise ConfigError(f"{text!r} is no driver", hint=f"there are {', '.join(get_args(Driver))}")
    return cast(Driver, text)


def parse_root(text: str) -> bytes:
    """Raises ConfigError where it is no absolute path."""
    if not text.startswith("/"):
        raise ConfigError(
            f"{text!r} is no directory of the cluster", hint="paths there begin with /"
        )
    return os.fsencode(text)


def _parse_max_read(text: str) -> int:
    size = parse_size(text)
    if size < _MAX_READ_LEAST:
        raise ConfigError("too small", hint=f"{_MAX_READ_LEAST} is the least")
    return size


def parse_on_unavailable(text: str) -> str:
    """The text as it was. Raises ConfigError where it is no such choice."""
    OnUnavailable.parse(text)
    return text


_SWITCHES: Final[dict[str, dict[str, Any]]] = {
    "ro": {"read_only": True},
    "rw": {"read_only": False},
    "allow_other": {"allow_other": True},
    "noallow_other": {"allow_other": False},
    "profile": {"profile": True},
    "sync_names": {"sync_names": True},
}
_VALUES: Final[dict[str, tuple[str, str, Callable[[str], Any]]]] = {
    "attr_cache": ("attr_cache_s", "TIME", parse_duration),
    "cache_size": ("cache_bytes", "SIZE", parse_size),
    "driver": ("driver", "NAME", parse_driver),
    "fsname": ("fsname", "NAME", str),
    "log": ("log_file", "FILE", os.path.abspath),
    "max_read": ("max_read_bytes", "SIZE", _parse_max_read),
    "on_unavailable": ("on_unavailable", "error|wait:TIME|wait", parse_on_unavailable),
    "root": ("root", "PATH", parse_root),
}
"""Of each option that takes a value: the field, what the value is, and its parser."""


def _escape(text: str) -> str:
    """libfuse splits its options at commas that no backslash precedes; pyfuse3 wants ASCII."""
    text = text.encode("ascii", "backslashreplace").decode("ascii")
    return text.replace("\\", "\\\\").replace(",", "\\,")
