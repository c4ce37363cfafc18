"""Read requests: look-ups, paths, directories."""

import errno

import msgspec
import pytest

from dfs.core.chunk import Layout
from dfs.core.errors import DfsError
from dfs.core.ids import ROOT_INODE, SYMLINK_MAX_BYTES
from dfs.master import queries
from dfs.wire.limits import Limits
from dfs.wire.messages import (
    READDIR_MAX,
    Create,
    Cred,
    DirReply,
    Mkdir,
    Open,
    ReadDir,
    Resolve,
    Rmdir,
    SetAttr,
    Symlink,
)
from tests.unit.master.rig import ANN, ROOT, Rig

E = errno
TOP = ROOT_INODE


@pytest.fixture
def rig() -> Rig:
    """/d/e/f, and links to each."""
    rig = Rig()
    d = rig.mkdir(b"d", 0o755)
    e = rig.mkdir(b"e", 0o755, parent=d)
    rig.create(b"f", 0o644, parent=e)
    for name, target in (
        (b"abs", b"/d/e"),
        (b"rel", b"d/e"),
        (b"slash", b"d/e/"),
        (b"file", b"d/e/f"),
        (b"fileslash", b"d/e/f/"),
        (b"dangling", b"no/where"),
        (b"loop", b"loop"),
        (b"up", b"../../d"),
    ):
        rig.made(Symlink(TOP, name, target))
    return rig


def number_of(action: object, *args: object) -> str:
    assert callable(action)
    with pytest.raises(DfsError) as caught:
        action(*args)
    assert "\n" not in str(caught.value)
    return errno.errorcode[caught.value.errno or 0]


# ------------------------------------------------------------------ lookup


def test_lookup_finds_names_and_dots(rig: Rig) -> None:
    d = rig.resolve(b"/d").ino
    assert queries.lookup(rig.store, ROOT, TOP, b"d").ino == d
    assert queries.lookup(rig.store, ROOT, d, b".").ino == d
    assert queries.lookup(rig.store, ROOT, d, b"..").ino == TOP
    assert queries.lookup(rig.store, ROOT, TOP, b"..").ino == TOP
    assert queries.lookup(rig.store, ROOT, TOP, b"loop").is_symlink


@pytest.mark.parametrize(
    ("parent", "name", "number"),
    [
        (TOP, b"no", "ENOENT"),
        (99, b"d", "ENOENT"),
        (-1, b"d", "ENOENT"),
        (4, b"x", "ENOTDIR"),
        (TOP, b"n" * 256, "ENAMETOOLONG"),
        (TOP, b"", "ENOENT"),
        (TOP, b"a/b", "EINVAL"),
        (TOP, b"a\0", "EINVAL"),
    ],
)
def test_lookup_refusals(rig: Rig, parent: int, name: bytes, number: str) -> None:
    assert number_of(queries.lookup, rig.store, ROOT, parent, name) == number


def test_lookup_takes_the_right_to_search(rig: Rig) -> None:
    d = rig.resolve(b"/d").ino
    rig.made(SetAttr(d, mode=0o766))
    for name in (b"e", b"no", b".", b".."):
        assert number_of(queries.lookup, rig.store, ANN, d, name) == "EACCES"
    rig.made(SetAttr(d, mode=0o711))
    assert queries.lookup(rig.store, ANN, d, b"e").is_dir


def test_get_refuses_what_is_not_there(rig: Rig) -> None:
    assert number_of(queries.get, rig.store, 99) == "ENOENT"
    assert number_of(queries.get, rig.store, -1) == "ENOENT"


# ------------------------------------------------------------------ resolve


@pytest.mark.parametrize(
    ("path", "same_as"),
    [
        (b"/", b"/"),
        (b".", b"/"),
        (b"/..", b"/"),
        (b"d/e/f", b"/d/e/f"),
        (b"//d///e/./f", b"/d/e/f"),
        (b"/d/../d/e/../e/f", b"/d/e/f"),
        (b"/d/e/", b"/d/e"),
        (b"/abs/f", b"/d/e/f"),
        (b"/rel", b"/d/e"),
        (b"/slash", b"/d/e"),
        (b"/rel/", b"/d/e"),
        (b"/file", b"/d/e/f"),
        (b"/up/e/f", b"/d/e/f"),
    ],
)
def test_paths_lead_where_posix_says(rig: Rig, path: bytes, same_as: bytes) -> None:
    assert rig.resolve(path).ino == rig.resolve(same_as).ino


@pytest.mark.parametrize(
    ("path", "number"),
    [
        (b"", "ENOENT"),
        (b"/no", "ENOENT"),
        (b"/no/f", "ENOENT"),
        (b"/dangling", "ENOENT"),
        (b"/d/e/f/", "ENOTDIR"),
        (b"/d/e/f/g", "ENOTDIR"),
        (b"/d/e/f/..", "ENOTDIR"),
        (b"/file/", "ENOTDIR"),
        (b"/fileslash", "ENOTDIR"),
        (b"/loop", "ELOOP"),
        (b"/loop/x", "ELOOP"),
        (b"/" + b"n" * 256, "ENAMETOOLONG"),
        (b"/." * 2048, "ENAMETOOLONG"),
        (b"/d\0", "EINVAL"),
    ],
)
def test_resolve_refusals(rig: Rig, path: bytes, number: str) -> None:
    assert number_of(rig.resolve, path) == number


def test_the_longest_path_is_allowed(rig: Rig) -> None:
    assert rig.resolve(b"/." * 2047 + b"/").ino == TOP


def test_the_last_link_is_followed_when_asked_or_when_a_slash_comes_after_it(rig: Rig) -> None:
    assert rig.resolve(b"/rel", follow=False).is_symlink
    assert rig.resolve(b"/rel/", follow=False).is_dir
    assert rig.resolve(b"/rel/f", follow=False).is_file
    assert rig.resolve(b"/loop", follow=False).is_symlink


def test_forty_links_are_followed_and_no_more(rig: Rig) -> None:
    for number in range(41):
        target = b"d" if number == 0 else b"link%d" % (number - 1)
        rig.made(Symlink(TOP, b"link%d" % number, target))
    assert rig.resolve(b"/link39").is_dir
    assert number_of(rig.resolve, b"/link40") == "ELOOP"


def test_resolve_can_start_anywhere(rig: Rig) -> None:
    e = rig.resolve(b"/d/e").ino
    for path in (b"f", b"/f"):
        assert queries.resolve(rig.store, Resolve(ROOT, path, start=e)).is_file
    assert number_of(queries.resolve, rig.store, Resolve(ROOT, b"f", start=99)) == "ENOENT"
    file = rig.resolve(b"/d/e/f").ino
    assert number_of(queries.resolve, rig.store, Resolve(ROOT, b".", start=file)) == "ENOTDIR"


def test_every_directory_on_the_way_must_be_searchable(rig: Rig) -> None:
    e = rig.resolve(b"/d/e").ino
    rig.made(SetAttr(e, mode=0o700))
    assert rig.resolve(b"/d/e", ANN).is_dir
    assert number_of(rig.resolve, b"/d/e/f", ANN) == "EACCES"
    assert number_of(rig.resolve, b"/d/e/..", ANN) == "EACCES"
    assert rig.resolve(b"/d/e/f", Cred(0, 99)).is_file


# ------------------------------------------------------------------ directories


def page(rig: Rig, request: ReadDir) -> DirReply:
    body = queries.read_dir(rig.store, request).encode(Layout())
    return msgspec.msgpack.decode(body, type=DirReply)


def test_read_dir_shows_names_in_order_with_their_inodes(rig: Rig) -> None:
    home = rig.mkdir(b"home")
    names = [b"b", b"\xff", b"a", b"n" * 255]
    inodes = {name: rig.made(Create(home, name, 0o644)) for name in names}
    reply = page(rig, ReadDir(ROOT, home))
    assert [entry.name for entry in reply.entries] == sorted(names)
    assert all(entry.inode == inodes[entry.name] for entry in reply.entries)
    assert all(entry.extents is None for entry in reply.entries)
    assert not reply.more


def test_read_dir_pages_see_every_entry_once_while_others_come_and_go(rig: Rig) -> None:
    home = rig.mkdir(b"home")
    for number in range(50):
        rig.create(b"%02d" % number, parent=home)
    seen: list[bytes] = []
    after = b""
    while True:
        reply = page(rig, ReadDir(ROOT, home, after, 7))
        seen += [entry.name for entry in reply.entries]
        if not reply.more:
            break
        assert len(reply.entries) == 7
        after = seen[-1]
        rig.create(b"%02dnew" % len(seen), parent=home)
        rig.mkdir(b"%02dother" % len(seen), parent=home)
    assert [name for name in seen if len(name) == 2] == [b"%02d" % n for n in range(50)]
    assert len(seen) == len(set(seen))
    assert page(rig, ReadDir(ROOT, home, b"\xff")).entries == ()


def test_read_dir_of_one_directory_does_not_run_into_the_next(rig: Rig) -> None:
    one, two = rig.mkdir(b"one"), rig.mkdir(b"two")
    rig.create(b"x", parent=one)
    rig.create(b"y", parent=two)
    assert rig.names(one) == [b"x"]
    assert rig.names(two) == [b"y"]


def test_read_dir_refusals(rig: Rig) -> None:
    file, d = rig.resolve(b"/d/e/f").ino, rig.resolve(b"/d").ino
    assert number_of(page, rig, ReadDir(ROOT, file)) == "ENOTDIR"
    assert number_of(page, rig, ReadDir(ROOT, 99)) == "ENOENT"
    assert number_of(page, rig, ReadDir(ROOT, d, limit=0)) == "EINVAL"
    rig.made(SetAttr(d, mode=0o711))
    assert number_of(page, rig, ReadDir(ANN, d)) == "EACCES"
    rig.made(SetAttr(d, mode=0o744))
    assert len(page(rig, ReadDir(ANN, d)).entries) == 1


def test_read_dir_has_a_greatest_page(rig: Rig) -> None:
    home = rig.mkdir(b"home")
    rig.apply(*[Create(home, b"%05d" % n, 0o644) for n in range(READDIR_MAX)])
    rig.create(b"more", parent=home)
    reply = page(rig, ReadDir(ROOT, home, limit=1 << 40))
    assert (len(reply.entries), reply.more) == (READDIR_MAX, True)


def test_a_page_of_long_links_fits_into_a_frame(rig: Rig) -> None:
    home = rig.mkdir(b"home")
    target = b"t" * SYMLINK_MAX_BYTES
    names = [b"%0255d" % number for number in range(READDIR_MAX)]
    for start in range(0, READDIR_MAX, 1024):
        rig.apply(*[Symlink(home, name, target) for name in names[start : start + 1024]])
    seen: list[bytes] = []
    more = True
    while more:
        after = seen[-1] if seen else b""
        found = queries.read_dir(rig.store, ReadDir(ROOT, home, after, READDIR_MAX))
        assert len(found.encode(Layout())) < Limits().body_bytes
        seen += [name for name, _, _ in found.entries]
        more = found.more
    assert seen == names


def test_a_removed_directory_that_is_open_reads_as_empty(rig: Rig) -> None:
    home = rig.made(Mkdir(TOP, b"home", 0o755)).ino
    rig.made(Open(home))
    rig.do(Rmdir(TOP, b"home"))
    assert page(rig, ReadDir(ROOT, home)).entries == ()
    assert queries.lookup(rig.store, ROOT, home, b"..").ino == TOP
