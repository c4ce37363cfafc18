"""What `dfs why` makes of the facts: verdicts, sentences, what to do."""

import errno
from collections.abc import Sequence

import pytest

from dfs.client.diagnosis import (
    Answer,
    ChunkFacts,
    Diagnosis,
    Facts,
    FragmentFacts,
    PathFault,
    Range,
    Verdict,
    WritingFacts,
    chunk_sentence,
    diagnose,
    stand,
    writing_sentence,
)
from dfs.core.chunk import Chunk, ChunkState, DiskLocation, DiskState, Fragment, FragmentState
from dfs.core.inode import Extent, Inode
from dfs.core.policy import BUILT_IN

LENGTH = 1000
FILE = Inode(9, 0o100640, 1, 1000, 50, LENGTH, 0, 0, 0, 1)


def fragment(
    index: int,
    answer: Answer = Answer.HOLDS,
    *,
    state: FragmentState = FragmentState.GOOD,
    disk_state: DiskState = DiskState.UP,
    length: int = LENGTH,
    damaged: tuple[Range, ...] = (),
    verified: bool = False,
    said: str = "words of the server",
) -> FragmentFacts:
    disk = index + 1
    return FragmentFacts(
        Fragment(index, disk, state),
        answer,
        said,
        length if answer is Answer.HOLDS else 0,
        damaged,
        verified,
        None
        if answer is Answer.NO_DISK
        else DiskLocation(disk, disk, f"host{disk}:1", "", "", disk_state),
        "/data",
        12.0,
    )


def chunk(
    fragments: Sequence[FragmentFacts],
    k: int = 1,
    m: int = 2,
    needs: tuple[Range, ...] = ((0, LENGTH),),
) -> ChunkFacts:
    listed = tuple(each.fragment for each in fragments)
    record = Chunk(5, ChunkState.SEALED, k, m, 1, 0, LENGTH, LENGTH, listed)
    return ChunkFacts(record, needs, tuple(fragments))


def facts(*chunks: ChunkFacts, verified: bool = False) -> Facts:
    extents = tuple(Extent(0, LENGTH, each.chunk.chunk, 0) for each in chunks)
    writing = WritingFacts(got=3, wanted=3)
    return Facts(
        b"/a",
        FILE,
        extents=extents,
        chunks=chunks,
        policy=BUILT_IN[0],
        writing=writing,
        verified=verified,
    )


def judged(*fragments: FragmentFacts, k: int = 1, m: int = 2) -> Diagnosis:
    return diagnose(facts(chunk(fragments, k, m)))


def kinds(diagnosis: Diagnosis) -> list[str]:
    return [finding.kind for finding in diagnosis.findings]


SILENT, LACKS, FAILED = Answer.SILENT, Answer.LACKS, Answer.DISK_FAILED


# ------------------------------------------------------------------ verdicts


def test_nothing_is_wrong_with_a_whole_file() -> None:
    found = judged(*map(fragment, range(3)))
    assert found.summary == "nothing is wrong: /a reads fine, and survives the loss of any 2 disks"
    assert (found.verdict, found.survives, found.is_safe) == (Verdict.FINE, 2, True)
    assert not found.findings


def test_a_file_that_was_verified_says_so() -> None:
    found = diagnose(facts(chunk([fragment(0), fragment(1)], 1, 1), verified=True))
    assert found.summary == (
        "nothing is wrong: /a reads fine, and survives the loss of any 1 disk; every record of it "
        "was read and matches its checksum"
    )


def test_a_file_without_spare_is_fine_and_told_to_be_so() -> None:
    found = judged(fragment(0), m=0)
    assert found.is_safe
    assert "kept without spare: the loss of a disk loses it" in found.summary


def test_a_file_without_bytes_has_nothing_to_lose() -> None:
    found = diagnose(facts())
    assert found.summary.startswith("nothing is wrong: ")
    assert found.survives is None


@pytest.mark.parametrize(
    ("k", "m", "lost", "verdict", "survives"),
    [
        (1, 2, 1, Verdict.DEGRADED, 1),
        (1, 2, 2, Verdict.AT_RISK, 0),
        (1, 2, 3, Verdict.LOST, -1),
        (1, 1, 1, Verdict.AT_RISK, 0),
        (4, 2, 1, Verdict.DEGRADED, 1),
        (4, 2, 2, Verdict.AT_RISK, 0),
        (4, 2, 3, Verdict.LOST, -1),
        (1, 0, 1, Verdict.LOST, -1),
    ],
)
def test_losses_are_counted_against_what_is_needed(
    k: int, m: int, lost: int, verdict: Verdict, survives: int
) -> None:
    parts = [fragment(index, LACKS if index < lost else Answer.HOLDS) for index in range(k + m)]
    found = judged(*parts, k=k, m=m)
    assert (found.verdict, found.survives) == (verdict, survives)
    assert found.is_safe == (survives > 0)


def test_what_silent_servers_have_is_not_lost() -> None:
    parts = [fragment(0, SILENT), fragment(1, SILENT), fragment(2, LACKS)]
    found = judged(*parts)
    assert found.verdict is Verdict.UNAVAILABLE
    assert found.summary == (
        "/a cannot be read now: too few fragments of 1000 of its 1000 bytes can be reached; "
        "nothing is lost, it reads again when the servers are back"
    )


def test_nothing_is_hoped_of_a_silent_server_whose_fragment_was_bad_before() -> None:
    parts = [fragment(index, SILENT, state=FragmentState.LOST) for index in range(3)]
    found = judged(*parts)
    assert found.verdict is Verdict.LOST
    assert "1000 of its 1000 bytes are lost, unless" in found.summary


def test_damage_counts_for_the_bytes_that_it_hits() -> None:
    """Each copy is damaged somewhere, and every byte is good in two of them."""
    parts = [
        fragment(index, damaged=((300 * index, 300 * index + 100),), verified=True)
        for index in range(3)
    ]
    found = judged(*parts)
    assert (found.verdict, found.survives) == (Verdict.DEGRADED, 1)
    assert kinds(found) == ["fragment-damaged"] * 3
    assert "100 bytes of the file cannot be had from it" in found.findings[0].what


def test_bytes_damaged_everywhere_are_counted() -> None:
    parts = [fragment(index, damaged=((100, 150 + index),), verified=True) for index in range(3)]
    found = judged(*parts)
    assert found.verdict is Verdict.LOST
    assert "50 of its 1000 bytes are lost" in found.summary


def test_a_short_fragment_gives_what_it_covers() -> None:
    parts = [fragment(0, length=400), fragment(1), fragment(2)]
    assert stand(chunk(parts)).readable == 2
    assert stand(chunk(parts, needs=((0, 400),))).verdict is Verdict.FINE
    found = judged(*parts)
    assert kinds(found) == ["fragment-short"]
    assert "covers 400 bytes, 1000 are needed" in found.findings[0].what


def test_a_fragment_noted_as_corrupt_counts_once_it_was_verified() -> None:
    bad = FragmentState.CORRUPT
    unsure = judged(fragment(0, state=bad), fragment(1), fragment(2))
    assert (unsure.verdict, kinds(unsure)) == (Verdict.DEGRADED, ["fragment-noted-corrupt"])
    assert "--verify" in unsure.findings[0].todo
    sure = judged(fragment(0, state=bad, verified=True), fragment(1), fragment(2))
    assert (sure.verdict, kinds(sure)) == (Verdict.FINE, ["fragment-noted-corrupt"])
    assert not sure.summary.startswith("nothing is wrong")


def test_a_fragment_noted_as_lost_counts_where_its_server_has_it() -> None:
    found = judged(fragment(0, state=FragmentState.LOST), fragment(1), fragment(2))
    assert (found.verdict, kinds(found)) == (Verdict.FINE, ["fragment-noted-lost"])


def test_two_disks_with_one_fragment_count_once() -> None:
    parts = [fragment(0), fragment(0), fragment(1)]
    assert stand(chunk(parts)).readable == 2


def test_the_worst_chunk_decides() -> None:
    good = chunk([*map(fragment, range(3))])
    weak = chunk([fragment(0), fragment(1, LACKS), fragment(2, LACKS)])
    found = diagnose(facts(good, weak))
    assert (found.verdict, found.survives) == (Verdict.AT_RISK, 0)
    assert found.summary == (
        "/a reads fine now, but is at risk: the loss of one more disk loses data"
    )


# ------------------------------------------------------------------ findings


def test_a_dead_server_is_named_once_for_all_chunks() -> None:
    down = [
        chunk([fragment(0, SILENT, disk_state=DiskState.DOWN), fragment(1), fragment(2)])
        for _ in range(3)
    ]
    (finding,) = diagnose(facts(*down)).findings
    assert finding.what == (
        "chunk server host1:1 does not answer (words of the server), and the master has not heard "
        "it for 12 s; it has fragments of 1 of the file's 3 chunks"
    )
    assert finding.todo.startswith("start it again")


def test_a_server_that_only_we_cannot_reach_points_to_the_network() -> None:
    (finding,) = judged(fragment(0, SILENT), fragment(1), fragment(2)).findings
    assert "though the master heard it 12 s ago" in finding.what
    assert "firewall" in finding.todo


def test_a_server_that_only_the_master_cannot_hear_is_named_too() -> None:
    found = judged(fragment(0, disk_state=DiskState.SUSPECT), fragment(1), fragment(2))
    assert (found.verdict, kinds(found)) == (Verdict.FINE, ["server-unheard"])
    assert not found.summary.startswith("nothing is wrong")


def test_a_failed_disk_is_named_with_its_words() -> None:
    (finding,) = judged(fragment(0, FAILED), fragment(1), fragment(2)).findings
    assert finding.what == "disk 1 (/data on host1:1) failed: words of the server"
    assert finding.todo.startswith("replace it")


def test_a_disk_that_the_master_does_not_know() -> None:
    (finding,) = judged(fragment(0, Answer.NO_DISK), fragment(1), fragment(2)).findings
    assert (finding.kind, finding.disk) == ("disk-unknown", 1)


def test_a_missing_fragment_is_named_with_its_place() -> None:
    (finding,) = judged(fragment(0, LACKS), fragment(1), fragment(2)).findings
    assert finding.what == (
        "fragment 0 of chunk 5 on disk 1 (/data on host1:1) is not there: words of the server"
    )
    assert (finding.chunk, finding.fragment, finding.disk) == (5, 0, 1)


def test_fragments_that_were_never_written_are_told() -> None:
    found = judged(fragment(0), fragment(1))
    assert kinds(found) == ["never-written"]
    assert found.survives == 1


def test_an_extent_of_no_chunk_is_a_loss() -> None:
    broken = Facts(b"/a", FILE, extents=(Extent(0, LENGTH, 7, 0),), gone=(7,))
    found = diagnose(broken)
    assert (found.verdict, kinds(found)) == (Verdict.LOST, ["chunk-gone"])


def test_a_chunk_has_a_line_of_its_own() -> None:
    weak = chunk([fragment(0), fragment(1), fragment(2, LACKS)])
    assert chunk_sentence(weak) == (
        "chunk 5 (rep:3): 2 of 3 fragments can be read, 1 is needed; survives the loss of 1 more "
        "disk"
    )


# ------------------------------------------------------------------ writing


def writing(facts_of: WritingFacts, refused: str = "") -> Facts:
    return Facts(b"/a", FILE, policy=BUILT_IN[0], writing=facts_of, may_not_write=refused)


def test_writing_with_all_fragments() -> None:
    found = writing(WritingFacts(got=3, wanted=3))
    assert writing_sentence(found) == "new data gets all 3 fragments (policy default (rep:3))"
    assert not diagnose(found).findings


def test_writing_with_fewer_fragments() -> None:
    found = diagnose(writing(WritingFacts(got=2, wanted=3)))
    assert kinds(found) == ["writes-degraded"]
    assert "new data gets 2 of 3 fragments now" in found.findings[0].what
    assert found.is_safe


def test_writing_that_the_master_refuses() -> None:
    found = diagnose(writing(WritingFacts(refused="no space: ...", hint="delete files")))
    (finding,) = found.findings
    assert finding.what == "new data cannot be written now: no space: ..."
    assert finding.todo == "delete files"
    assert not found.summary.startswith("nothing is wrong")


def test_who_may_not_write_is_told_so() -> None:
    found = writing(WritingFacts(got=3, wanted=3), refused="/a: Permission denied")
    assert writing_sentence(found) == "you may not write it: /a: Permission denied"
    assert diagnose(found).verdict is Verdict.FINE


# ------------------------------------------------------------------ paths and permissions


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (PathFault(errno.ENOENT, b"/a/b", b"/a"), "/a has no entry 'b'"),
        (
            PathFault(errno.ENOENT, b"/a/b", b"/a", target=b"../c"),
            "/a/b is a symbolic link to ../c, which is not there",
        ),
        (
            PathFault(errno.ENOTDIR, b"/a/b", b"/a"),
            "/a is no directory, so nothing can be below it",
        ),
        (
            PathFault(errno.EACCES, b"/a/b", b"/a", FILE),
            "you may not look into /a: it belongs to user 1000, group 50, mode 0640",
        ),
        (
            PathFault(errno.ELOOP, b"/a", b"/"),
            "/a goes through too many symbolic links: do they point to each other?",
        ),
        (PathFault(errno.ENAMETOOLONG, b"/a", b"/"), "/a: File name too long"),
    ],
)
def test_a_path_that_does_not_resolve_says_where(fault: PathFault, sentence: str) -> None:
    found = diagnose(Facts(b"/a/b/c", fault=fault))
    assert found.summary == f"/a/b/c cannot be opened: {sentence}"
    assert found.verdict is Verdict.REFUSED
    assert found.findings[0].kind == f"path-{errno.errorcode[fault.number].lower()}"
    assert not found.is_safe


def test_who_may_not_read_is_told_so() -> None:
    found = diagnose(Facts(b"/a", FILE, may_not_read="/a: Permission denied"))
    assert found.summary == "/a may not be read: /a: Permission denied"
    assert "mode 0640" in found.findings[0].what
    assert not found.is_safe
