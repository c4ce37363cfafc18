"""File modes as people write and read them: `chmod`'s arguments, the mode column of `ls`. Pure."""

import re
import stat
from typing import Final

from dfs.core.errors import ConfigError

_CLAUSE: Final = re.compile(r"([ugoa]*)((?:[-+=](?:[rwxXst]*|[ugo]))+)", re.ASCII)
_ACTION: Final = re.compile(r"([-+=])([ugo]|[rwxXst]*)", re.ASCII)
_OCTAL: Final = re.compile(r"[0-7]{1,5}", re.ASCII)

_CLASS_BITS: Final = {"u": 0o4700, "g": 0o2070, "o": 0o1007}
_SHIFT: Final = {"u": 6, "g": 3, "o": 0}
_ALL: Final = 0o7777

TYPE_NAMES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def type_name(mode: int) -> str:
    """`file`, `directory`, `symlink`, ... of a `st_mode`."""
    return TYPE_NAMES.get(stat.S_IFMT(mode), "unknown")


class ModeChange:
    """What `chmod MODE` does to a mode: parsed once, applied to each file.

    Octal sets all bits (a directory keeps its set-id bits unless five digits are given, as GNU
    chmod has it); symbolic is `[ugoa...][-+=][rwxXst...|u|g|o]`, comma-separated.
    """

    def __init__(self, text: str, umask: int) -> None:
        """Raises ConfigError where `text` is no mode."""
        self._octal: int | None = None
        self._keeps_set_ids = False
        self._clauses: list[tuple[str, list[tuple[str, str]]]] = []
        self._umask = umask
        if _OCTAL.fullmatch(text) and int(text, 8) <= _ALL:
            self._octal = int(text, 8)
            self._keeps_set_ids = len(text) < 5
            return
        for clause in text.split(","):
            match = _CLAUSE.fullmatch(clause)
            if not match:
                raise ConfigError(
                    f"{text!r}: not a mode", hint="write octal such as 644, or such as u+rwx,go-w"
                )
            self._clauses.append((match[1], _ACTION.findall(match[2])))

    def apply(self, mode: int) -> int:
        """The new permission bits (without the type) of a file with `mode`."""
        is_dir = stat.S_ISDIR(mode)
        if self._octal is not None:
            kept = mode & 0o6000 if is_dir and self._keeps_set_ids else 0
            return self._octal | kept
        bits = stat.S_IMODE(mode)
        for who, actions in self._clauses:
            for operator, permissions in actions:
                bits = self._apply_one(bits, who, operator, permissions, is_dir)
        return bits

    def _apply_one(self, bits: int, who: str, operator: str, permissions: str, is_dir: bool) -> int:
        affected = 0
        for each in "ugo" if "a" in who else who:
            affected |= _CLASS_BITS[each]
        value = _value(bits, permissions, is_dir) & (affected or _ALL & ~self._umask)
        # A directory keeps its set-id bits unless they are named.
        untouched = 0o6000 if is_dir else 0
        if "s" in permissions:
            untouched &= ~value
        value &= ~untouched
        if operator == "+":
            return bits | value
        if operator == "-":
            return bits & ~value
        preserved = (~affected if affected else 0) | untouched
        return bits & preserved & _ALL | value


def _value(bits: int, permissions: str, is_dir: bool) -> int:
    """The bits `permissions` names, for all classes at once."""
    if permissions in _SHIFT:
        copied = bits >> _SHIFT[permissions] & 0o7
        return copied << 6 | copied << 3 | copied
    value = 0
    for letter in permissions:
        match letter:
            case "r":
                value |= 0o444
            case "w":
                value |= 0o222
            case "x":
                value |= 0o111
            case "X":
                value |= 0o111 if is_dir or bits & 0o111 else 0
            case "s":
                value |= 0o6000
            case "t":
                value |= stat.S_ISVTX
    return value
