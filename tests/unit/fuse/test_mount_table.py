"""The kernel's table of mounts, and paths as it has them."""

from pathlib import Path

import pytest

from dfs_fuse import mount_table
from dfs_fuse.mount_table import Mount, canonical, mounted_at, mounted_below, mounts

TABLE = rb"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
40 22 0:37 / /mnt/p rw,relatime shared:5 master:2 - fuse.dfs 127.0.0.1:9420:/ rw,user_id=0
41 22 0:38 / /mnt/a\040b\134\011c rw - fuse.dfs x rw
42 40 0:39 / /mnt/p/inner rw - tmpfs none rw
43 22 0:40 / /mnt/p rw - tmpfs on\040top rw
44 22 0:41 / /mnt/pq rw - fuse.sshfs host: rw
"""


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mountinfo"
    path.write_bytes(TABLE + f"50 22 0:42 / {tmp_path}/at rw - fuse.dfs x rw\n".encode())
    monkeypatch.setattr(mount_table, "_TABLE", str(path))


def test_lines_are_read_with_their_escapes() -> None:
    found = list(mounts())
    assert found[1] == Mount("/mnt/p", "fuse.dfs", "127.0.0.1:9420:/", "0:37")
    assert found[1].minor == 37
    assert found[1].is_dfs
    assert found[2].point == "/mnt/a b\\\tc"
    assert not found[0].is_dfs
    assert not found[5].is_dfs


def test_the_topmost_mount_counts() -> None:
    top = mounted_at("/mnt/p")
    assert top is not None
    assert top.source == "on top"
    assert mounted_at("/mnt") is None
    assert mounted_below("/mnt/p") == ["/mnt/p/inner"]


def test_paths_are_made_as_the_table_has_them(tmp_path: Path) -> None:
    (tmp_path / "at").mkdir()
    (tmp_path / "link").symlink_to("at")
    (tmp_path / "up").symlink_to(tmp_path)
    point = f"{tmp_path}/at"
    assert canonical(f"{tmp_path}/link") == point
    assert canonical(f"{tmp_path}/up/at/") == point
    assert canonical(f"{tmp_path}/at/../at/.") == point
    assert canonical(f"{tmp_path}/missing") == f"{tmp_path}/missing"
    assert canonical("/") == "/"
