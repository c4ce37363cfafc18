import os
import stat
import subprocess
from pathlib import Path

import pytest

from dfs.cli.modes import ModeChange, type_name
from dfs.core.errors import ConfigError

MODES = [
    "644", "0755", "2755", "02755", "00755", "4711", "u+x", "a-w", "+x", "-w", "=r", "u=rwx,go=",
    "g=u", "o=g-w", "a+X", "u+s", "g+s", "+t", "o+t", "u+t", "a=", "a=rX", "ug+rw,o-rwx", "g-s",
    "u=s", "=", "a=rs", "+rws", "go+u-r",
]  # fmt: skip


@pytest.mark.parametrize("text", MODES)
def test_modes_mean_what_gnu_chmod_makes_of_them(text: str, tmp_path: Path) -> None:
    old_umask = os.umask(0o027)
    try:
        change = ModeChange(text, 0o027)
        for is_dir in (False, True):
            for before in (0o644, 0o755, 0o600, 0o2755, 0o4711, 0o1777, 0):
                path = tmp_path / f"x{is_dir}{before}"
                path.mkdir() if is_dir else path.touch()
                path.chmod(before)
                subprocess.run(["chmod", "--", text, path], capture_output=True, check=False)
                expected = stat.S_IMODE(path.stat().st_mode)
                kind = stat.S_IFDIR if is_dir else stat.S_IFREG
                assert oct(change.apply(kind | before)) == oct(expected), (before, is_dir)
    finally:
        os.umask(old_umask)


@pytest.mark.parametrize(
    "text", ["", "8", "77777", "u", "u+z", "x+r", "u+r,", "rw", "0o644", "u+r g+r"]
)
def test_what_is_no_mode_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a mode"):
        ModeChange(text, 0o022)


def test_types_have_names() -> None:
    assert type_name(stat.S_IFDIR | 0o755) == "directory"
    assert type_name(stat.S_IFLNK | 0o777) == "symlink"
    assert type_name(0) == "unknown"
