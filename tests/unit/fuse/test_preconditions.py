"""What lacks on a machine is said before anything is mounted, with what to do about it."""

import importlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dfs.core.errors import DfsError
from dfs_fuse import preconditions
from dfs_fuse.options import MountOptions
from dfs_fuse.preconditions import check_machine, check_point, choose_driver

OPTIONS = MountOptions(point="/")


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of /dev/fuse."""
    path = tmp_path / "fuse"
    path.touch()
    monkeypatch.setattr(preconditions, "_DEVICE", str(path))
    return path


def refusal(options: MountOptions = OPTIONS) -> str:
    with pytest.raises(DfsError) as caught:
        check_machine(options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_the_device_nothing_is_mounted(device: Path) -> None:
    device.unlink()
    assert refusal().startswith(f"no {device} here; `modprobe fuse`")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use any file")
def test_a_device_that_may_not_be_used_is_said(device: Path) -> None:
    device.chmod(0)
    assert refusal().startswith(f"no permission to use {device}; ")


def test_root_without_the_capability_is_told(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(preconditions, "_may_mount", lambda: False)
    assert "lacks the capability CAP_SYS_ADMIN" in refusal()
    monkeypatch.setattr(preconditions, "_may_mount", lambda: True)
    check_machine(OPTIONS)


def test_a_user_needs_fusermount_and_a_directory_of_his(
    device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "takes root, or the program fusermount3" in refusal()
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "access", lambda path, mode: path == str(tmp_path))
    assert refusal().startswith("/: no permission to mount here; ")
    check_machine(MountOptions(point=str(tmp_path)))


def test_a_user_may_let_others_in_where_root_allows_it(
    device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "fuse.conf"
    conf.write_text("# user_allow_other\n")
    monkeypatch.setattr(preconditions, "_FUSE_CONF", str(conf))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    options = MountOptions(point=str(tmp_path), allow_other=True)
    assert "allow_other; root has to put a line `user_allow_other` into" in refusal(options)
    conf.write_text("mount_max = 1\nuser_allow_other\n")
    check_machine(options)


def test_auto_takes_pyfuse3_where_it_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: list[ImportError] = []

    def find(name: str) -> Any:
        if missing:
            raise missing[0]

    monkeypatch.setattr(importlib, "import_module", find)
    monkeypatch.setattr(preconditions, "_has_libfuse2", lambda: True)
    assert choose_driver("auto") == "pyfuse3"
    assert choose_driver("fusepy") == "fusepy"

    missing.append(ModuleNotFoundError("No module named 'pyfuse3'", name="pyfuse3"))
    assert choose_driver("auto") == "fusepy"
    with pytest.raises(DfsError, match="is not installed; .*pip install"):
        choose_driver("pyfuse3")

    missing[:] = [ImportError("libfuse3.so.3: cannot open shared object file")]
    assert choose_driver("auto") == "fusepy"
    with pytest.raises(DfsError, match="cannot be loaded: libfuse3"):
        choose_driver("pyfuse3")

    monkeypatch.setattr(preconditions, "_has_libfuse2", lambda: False)
    with pytest.raises(DfsError, match="no libfuse 2 here.*apt-get install libfuse2"):
        choose_driver("auto")


def test_a_point_has_to_be_an_empty_directory(tmp_path: Path) -> None:
    check_point(str(tmp_path))
    file = tmp_path / "file"
    file.touch()
    for path, words in (
        (tmp_path, "not empty (it holds file)"),
        (file, "not a directory"),
        (tmp_path / "missing", "no such directory; make it: mkdir -p"),
        (file / "below", "Not a directory"),
    ):
        with pytest.raises(DfsError) as caught:
            check_point(str(path))
        assert str(caught.value).startswith(f"{path}: {words}")
