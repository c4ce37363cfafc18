import base64
import os

import pytest

from dfs.cli import names
from dfs.core.errors import ConfigError


def test_bytes_of_an_argument_survive() -> None:
    raw = b"/caf\xe9/\xff"
    assert names.remote_path(os.fsdecode(raw)) == raw


@pytest.mark.parametrize("argument", ["", "a/b", "./a", "~/x"])
def test_a_path_must_be_absolute(argument: str) -> None:
    with pytest.raises(ConfigError, match="remote paths are absolute"):
        names.remote_path(argument)


def test_what_cannot_be_printed_is_escaped() -> None:
    assert names.show(b"/a\xff\n\x1b[31m") == r"/a\xff\n\x1b[31m"
    assert names.show("/é\udcff") == r"/é\xff"
    assert names.show("plain ünïcode".encode()) == "plain ünïcode"


def test_documents_keep_exact_bytes() -> None:
    assert names.document("path", "/ü\n".encode()) == {"path": "/ü\n"}
    assert names.document("path", b"/\xff") == {
        "path": r"/\xff",
        "path_base64": base64.b64encode(b"/\xff").decode(),
    }


def test_paths_are_taken_apart() -> None:
    assert names.base(b"/a/b/") == b"b"
    assert names.base(b"/") == b""
    assert names.join(b"/", b"a") == b"/a"
    assert names.join(b"/a/", b"b") == b"/a/b"
    assert names.tidy(b"//a/./b//../c/") == b"/a/b/../c"
    assert names.tidy(b"/") == b"/"
