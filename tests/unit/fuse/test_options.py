"""What `-o` and fstab may say to a mount."""

import os

import pytest

from dfs.core.errors import ConfigError
from dfs_fuse.options import MountOptions, parse_driver, parse_root, with_words


def options(*texts: str) -> MountOptions:
    return with_words(MountOptions(point="/mnt"), texts)


def test_every_own_option_reaches_its_field() -> None:
    found = options(
        "ro,allow_other,attr_cache=250ms,cache_size=1G,driver=fusepy,fsname=photos",
        "log=/var/log/m.log,max_read=64K,on_unavailable=wait:5s,profile,root=/a/b",
    )
    assert found == MountOptions(
        point="/mnt",
        root=b"/a/b",
        driver="fusepy",
        read_only=True,
        allow_other=True,
        cache_bytes=1 << 30,
        attr_cache_s=0.25,
        on_unavailable="wait:5s",
        fsname="photos",
        profile=True,
        log_file="/var/log/m.log",
        max_read_bytes=65536,
    )


def test_the_defaults_are_those_of_the_manual() -> None:
    found = options("", " , ", "defaults")
    assert found == MountOptions(point="/mnt")
    assert found.cache_bytes == 512 * 1024 * 1024
    assert found.attr_cache_s == 1.0
    assert not found.read_only


def test_what_fstab_says_to_others_is_accepted() -> None:
    words = (
        "rw,relatime,_netdev,noauto,nofail,user,async,x-systemd.automount,x-systemd.idle-timeout=60,"
        "comment=photos,default_permissions,use_ino,nodiratime"
    )
    assert options(words) == MountOptions(point="/mnt")


def test_the_later_of_two_opposites_holds() -> None:
    assert options("ro,rw").read_only is False
    assert options("rw", "ro").read_only is True
    assert options("nosuid,suid,nodev").kernel_flags == ("suid", "nodev")
    assert options("allow_other,noallow_other").allow_other is False


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("alow_other", "-o alow_other: no such mount option; did you mean allow_other?"),
        ("frobnicate=7", "-o frobnicate: no such mount option; there are allow_other, attr_cache,"),
        ("attr_cache", "-o attr_cache: its value is missing; write attr_cache=TIME"),
        ("attr_cache=", "-o attr_cache=: its value is missing; write attr_cache=TIME"),
        ("attr_cache=soon", "-o attr_cache=soon: 'soon' is not a duration; write"),
        ("cache_size=lots", "-o cache_size=lots: 'lots' is not a size; write"),
        ("ro=1", "-o ro=1: takes no value; write ro"),
        ("nosuid=yes", "-o nosuid=yes: takes no value; write nosuid"),
        ("driver=fuse4", "-o driver=fuse4: 'fuse4' is no driver; there are auto, fusepy, pyfuse3"),
        ("root=sub", "-o root=sub: 'sub' is no directory of the cluster; paths there begin with /"),
        ("max_read=1", "-o max_read=1: too small; 4096 is the least"),
        ("on_unavailable=perhaps", "-o on_unavailable=perhaps: on_unavailable=perhaps: no such"),
        ("sync", "-o sync: a dfs mount cannot do this; programs that need it call fsync(2)"),
    ],
)
def test_what_is_wrong_is_said_by_name(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options(f"rw,{word}")
    assert str(caught.value).startswith(message)


def test_flags_of_the_command_line_are_checked_the_same_way() -> None:
    assert parse_driver("pyfuse3") == "pyfuse3"
    assert parse_root("/a/\udcff") == b"/a/\xff"
    with pytest.raises(ConfigError):
        parse_driver("")
    with pytest.raises(ConfigError):
        parse_root("")


def test_the_kernel_hears_what_concerns_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert set(MountOptions(point="/mnt").fuse_options) == {
        "default_permissions", "fsname=dfs", "subtype=dfs", "rw", "suid", "dev",
    }  # fmt: skip
    asked = with_words(
        MountOptions(point="/mnt", fsname="a:1,b:2:/"),
        ["ro,nosuid,noexec,noatime,allow_other,max_read=128K"],
    )
    assert set(asked.fuse_options) == {
        "default_permissions", "fsname=a:1\\,b:2:/", "subtype=dfs", "ro", "nosuid", "dev", "noexec",
        "noatime", "allow_other", "max_read=131072",
    }  # fmt: skip


def test_an_ordinary_user_asks_for_no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    words = set(options("suid,dev,noatime").fuse_options)
    assert words == {"default_permissions", "fsname=dfs", "subtype=dfs", "rw", "noatime"}
