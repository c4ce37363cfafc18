"""Why a file can or cannot be read and written now, in sentences a person understands: pure.

`fact_finding` gathers the facts; here they are judged. A fragment counts where its server says
that it holds the bytes, whatever the master believes; damage that was found counts for the bytes
that it hits, so that a file is told to be lost only where no k fragments have some byte of it.
"""

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final

from dfs.client.remote_paths import show
from dfs.core.chunk import Chunk, DiskLocation, DiskState, Fragment, FragmentState
from dfs.core.inode import Extent, Inode
from dfs.core.policy import Policy
from dfs.core.redundancy import Redundancy

Range = tuple[int, int]
"""Raw bytes [start, end) of a chunk."""

# ------------------------------------------------------------------ facts


class Answer(StrEnum):
    """What a chunk server said of a fragment."""

    HOLDS = "holds"
    LACKS = "lacks"
    """It has no such fragment, or cannot make sense of it."""
    DISK_FAILED = "disk failed"
    SILENT = "silent"
    """No answer in time."""
    NO_DISK = "no disk"
    """Nobody to ask: the master knows no such disk."""


@dataclass(frozen=True, slots=True)
class FragmentFacts:
    """One fragment: what the master believes, and what its server says."""

    fragment: Fragment
    answer: Answer
    said: str = ""
    """The server's words, or why there are none."""
    length: int = 0
    """Raw bytes of the chunk that it covers."""
    damaged: tuple[Range, ...] = ()
    """What was asked for and did not match its checksum, or was not there."""
    verified: bool = False
    """Its records were read and checked, as far as the file needs them."""
    location: DiskLocation | None = None
    """Where its disk is, and what the master thinks of that."""
    disk_path: str = ""
    heard_s: float = -1.0
    """How long ago the master heard the server; -1: never since it started."""

    @property
    def address(self) -> str:
        return self.location.address if self.location is not None else ""

    @property
    def unheard(self) -> bool:
        """The master does not hear its server."""
        unheard = (DiskState.SUSPECT, DiskState.DOWN)
        return self.location is not None and self.location.state in unheard

    @property
    def place(self) -> str:
        where = f"{self.disk_path} on {self.address}" if self.disk_path else self.address
        return f"disk {self.fragment.disk} ({where})" if where else f"disk {self.fragment.disk}"


@dataclass(frozen=True, slots=True)
class ChunkFacts:
    chunk: Chunk
    needs: tuple[Range, ...]
    """What the file refers to, in order, without overlaps."""
    fragments: tuple[FragmentFacts, ...]


@dataclass(frozen=True, slots=True)
class PathFault:
    """Where a path stops to resolve."""

    number: int
    """The errno."""
    at: bytes
    """The shortest beginning of the path that fails."""
    parent: bytes = b"/"
    """What comes before its last name."""
    directory: Inode | None = None
    """The inode of `parent`."""
    target: bytes | None = None
    """Where `at` points to, if it is a symbolic link."""


@dataclass(frozen=True, slots=True)
class WritingFacts:
    """What the master said when it was asked for a new chunk."""

    refused: str = ""
    hint: str = ""
    got: int = 0
    """Fragments that a new chunk has."""
    wanted: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    path: bytes
    inode: Inode | None = None
    fault: PathFault | None = None
    may_not_read: str = ""
    """How the master refused to open it."""
    may_not_write: str = ""
    extents: tuple[Extent, ...] = ()
    chunks: tuple[ChunkFacts, ...] = ()
    gone: tuple[int, ...] = ()
    """Chunks that extents name and the master does not know."""
    policy: Policy | None = None
    writing: WritingFacts | None = None
    verified: bool = False


# ------------------------------------------------------------------ findings


class Verdict(StrEnum):
    """How reading stands; the worst of all chunks."""

    FINE = "fine"
    DEGRADED = "degraded"
    """Reads; fewer losses than it should can be borne, but at least one."""
    AT_RISK = "at risk"
    """Reads; the next loss loses data."""
    UNAVAILABLE = "unavailable"
    """Does not read; it would with the servers that are silent."""
    LOST = "lost"
    """Does not read, and would not with them."""
    REFUSED = "refused"
    """The path does not lead to it, or may not be read."""


_BADNESS: Final = {verdict: badness for badness, verdict in enumerate(Verdict)}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    kind: str
    """For programs; never changes its meaning."""
    what: str
    todo: str = ""
    chunk: int = 0
    fragment: int = -1
    disk: int = 0
    address: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """How one chunk stands, for the bytes that the file needs of it."""

    readable: int
    """Fragments that can be read of each of those bytes, at least."""
    survives: int
    """Further losses it bears; negative: not even none."""
    verdict: Verdict
    unreadable_bytes: int


@dataclass(frozen=True, slots=True)
class Diagnosis:
    verdict: Verdict
    survives: int | None
    """Losses of disks that the file bears; None where no disk holds any of it."""
    summary: str
    findings: tuple[Finding, ...]

    @property
    def is_safe(self) -> bool:
        """It reads now, and the next loss loses nothing that the policy protects."""
        return self.verdict in (Verdict.FINE, Verdict.DEGRADED)


def diagnose(facts: Facts) -> Diagnosis:
    """Judge what was gathered of one file."""
    if facts.fault is not None:
        finding = _explain_fault(facts.fault)
        summary = f"{show(facts.path)} cannot be opened: {finding.what}"
        return Diagnosis(Verdict.REFUSED, None, summary, (finding,))
    findings = list(_read_findings(facts))
    standings = [stand(chunk) for chunk in facts.chunks]
    verdict = max((each.verdict for each in standings), key=_BADNESS.__getitem__, default=None)
    verdict = verdict or Verdict.FINE
    if facts.gone:
        verdict = Verdict.LOST
    survives = min((each.survives for each in standings), default=None)
    findings += _writing_findings(facts)
    if facts.may_not_read:
        verdict = max(verdict, Verdict.REFUSED, key=_BADNESS.__getitem__)
    summary = _summary(facts, verdict, survives, standings, bool(findings))
    return Diagnosis(verdict, survives, summary, tuple(findings))


# ------------------------------------------------------------------ counting fragments


def _usable(each: FragmentFacts, start: int, end: int) -> bool:
    """Whether the fragment gives these bytes, as far as anybody knows."""
    if each.answer is not Answer.HOLDS or each.length < end:
        return False
    if each.fragment.state == FragmentState.CORRUPT and not each.verified:
        return False
    return not any(low < end and start < high for low, high in each.damaged)


def _usable_when_back(each: FragmentFacts, start: int, end: int) -> bool:
    silent = each.answer is Answer.SILENT and each.fragment.state == FragmentState.GOOD
    return silent or _usable(each, start, end)


def _pieces(facts: ChunkFacts) -> Iterable[Range]:
    """The needed ranges, cut where the set of fragments that have them may change."""
    edges = {edge for each in facts.fragments for pair in each.damaged for edge in pair}
    edges.update(each.length for each in facts.fragments)
    for start, end in facts.needs:
        cuts = [start, *sorted(edge for edge in edges if start < edge < end), end]
        yield from pairwise(cuts)


def _count(facts: ChunkFacts, usable: Callable[[FragmentFacts, int, int], bool], at: Range) -> int:
    return len({each.fragment.index for each in facts.fragments if usable(each, *at)})


def stand(facts: ChunkFacts) -> Standing:
    """How many fragments are left of each needed byte, and what that means."""
    k, spare = facts.chunk.k, facts.chunk.m
    counts = {piece: _count(facts, _usable, piece) for piece in _pieces(facts)}
    readable = min(counts.values(), default=k + spare)
    missing = [piece for piece, count in counts.items() if count < k]
    if missing:
        hope = all(_count(facts, _usable_when_back, piece) >= k for piece in missing)
        verdict = Verdict.UNAVAILABLE if hope else Verdict.LOST
    elif readable >= k + spare:
        verdict = Verdict.FINE
    else:
        verdict = Verdict.AT_RISK if readable == k else Verdict.DEGRADED
    bytes_missing = sum(end - start for start, end in missing)
    return Standing(readable, readable - k, verdict, bytes_missing)


# ------------------------------------------------------------------ sentences about reading


def _summary(
    facts: Facts,
    verdict: Verdict,
    survives: int | None,
    standings: Sequence[Standing],
    troubled: bool,
) -> str:
    name = show(facts.path)
    checked = "; every record of it was read and matches its checksum" if facts.verified else ""
    match verdict:
        case Verdict.REFUSED:
            return f"{name} may not be read: {facts.may_not_read}"
        case Verdict.FINE:
            beginning = f"{name} reads fine" if troubled else f"nothing is wrong: {name} reads fine"
            if survives is None:
                return f"{beginning}; no disk holds any of it, the master alone keeps it"
            if not survives:
                return (
                    f"{beginning}; it is kept without spare: the loss of a disk loses it{checked}"
                )
            return f"{beginning}, and survives the loss of any {_disks(survives)}{checked}"
        case Verdict.DEGRADED:
            assert survives is not None
            full = min(each.chunk.m for each in facts.chunks)
            return (
                f"{name} reads fine now, and survives the loss of {_disks(survives, 'more ')}; "
                f"with all in order it would survive {full}"
            )
        case Verdict.AT_RISK:
            return f"{name} reads fine now, but is at risk: the loss of one more disk loses data"
    size = facts.inode.size if facts.inode is not None else 0
    missing = sum(each.unreadable_bytes for each in standings)
    missing += sum(each.length for each in facts.extents if each.chunk in facts.gone)
    part = f"{missing} of its {_plural(size, 'byte')}"
    if verdict is Verdict.UNAVAILABLE:
        return (
            f"{name} cannot be read now: too few fragments of {part} can be reached; nothing is "
            "lost, it reads again when the servers are back"
        )
    return f"{name} cannot be read: {part} are lost, unless a disk with a good fragment comes back"


def _read_findings(facts: Facts) -> Iterable[Finding]:
    if facts.may_not_read:
        yield Finding(
            "may-not-read",
            f"you may not read {show(facts.path)}: {_owned(facts.inode)}",
            "ask its owner, or run this as a user who may",
        )
    for gone in facts.gone:
        yield Finding(
            "chunk-gone",
            f"the file refers to chunk {gone}, which the master does not know",
            "this should never be: restore the file from a backup, and report it as a bug of dfs",
            chunk=gone,
        )
    yield from _server_findings(facts)
    yield from _disk_findings(facts)
    for chunk_facts in facts.chunks:
        chunk = chunk_facts.chunk
        short = chunk.k + chunk.m - len(chunk_facts.fragments)
        if short > 0:
            yield Finding(
                "never-written",
                f"chunk {chunk.chunk} was written with {len(chunk_facts.fragments)} of "
                f"{chunk.k + chunk.m} fragments: not enough disks took data then",
                _MADE_ANEW,
                chunk=chunk.chunk,
            )
        for each in chunk_facts.fragments:
            finding = _fragment_finding(chunk_facts, each)
            if finding is not None:
                yield finding


_MADE_ANEW: Final = (
    "nothing, while the file reads: the cluster makes it anew by itself; `dfs admin jobs list` "
    "says how far it is and what it waits for"
)


def _all_fragments(facts: Facts) -> Iterable[tuple[Chunk, FragmentFacts]]:
    for chunk_facts in facts.chunks:
        for each in chunk_facts.fragments:
            yield chunk_facts.chunk, each


def _server_findings(facts: Facts) -> Iterable[Finding]:
    """One for each server that is silent, or that the master does not hear."""
    servers: dict[str, list[tuple[Chunk, FragmentFacts]]] = {}
    for chunk, each in _all_fragments(facts):
        if each.address:
            servers.setdefault(each.address, []).append((chunk, each))
    for address, held in servers.items():
        _, first = held[0]
        some = len({chunk.chunk for chunk, _ in held})
        part = f"it has fragments of {some} of the file's {_plural(len(facts.chunks), 'chunk')}"
        silent = next((each for _, each in held if each.answer is Answer.SILENT), None)
        if silent is not None:
            known = f"and the master has not heard it {_since(first.heard_s)}"
            todo = "start it again, or mend its machine or network: what it holds counts again then"
            if not first.unheard:
                known = f"though the master heard it {first.heard_s:.0f} s ago"
                todo = (
                    "see whether it still runs, whether it hangs, and whether this machine can "
                    "reach it: the network, a firewall, the address it listens on"
                )
            yield Finding(
                "server-silent",
                f"chunk server {address} does not answer ({silent.said}), {known}; {part}",
                todo,
                address=address,
            )
        elif first.unheard:
            yield Finding(
                "server-unheard",
                f"chunk server {address} answers, but the master has not heard it "
                f"{_since(first.heard_s)}; {part}",
                "see whether it can reach the master: it takes no new data until then",
                address=address,
            )


def _disk_findings(facts: Facts) -> Iterable[Finding]:
    """One for each disk that failed, or that nobody knows."""
    seen: set[int] = set()
    for _, each in _all_fragments(facts):
        disk = each.fragment.disk
        if disk in seen:
            continue
        if each.answer is Answer.DISK_FAILED:
            seen.add(disk)
            yield Finding(
                "disk-failed",
                f"{each.place} failed: {each.said}",
                "replace it: stop its server, and give it a new, empty directory",
                disk=disk,
                address=each.address,
            )
        elif each.answer is Answer.NO_DISK:
            seen.add(disk)
            yield Finding(
                "disk-unknown",
                f"{each.place} is not known to the master",
                "start the chunk server that has it",
                disk=disk,
            )


def _fragment_finding(chunk_facts: ChunkFacts, each: FragmentFacts) -> Finding | None:
    """What is wrong with one fragment, where its server and disk answer."""
    chunk, state = chunk_facts.chunk, each.fragment.state
    name = f"fragment {each.fragment.index} of chunk {chunk.chunk} on {each.place}"
    needed = max((end for _, end in chunk_facts.needs), default=0)
    kind, what, todo = "", "", _MADE_ANEW
    if each.answer is Answer.LACKS:
        kind, what = "fragment-missing", f"{name} is not there: {each.said}"
    elif each.answer is not Answer.HOLDS:
        return None
    elif each.damaged:
        bad = sum(end - start for start, end in each.damaged)
        kind = "fragment-damaged"
        what = f"{name} is damaged: {_plural(bad, 'byte')} of the file cannot be had from it"
        what += f" ({each.said})" if each.said else ""
    elif each.length < needed:
        kind = "fragment-short"
        what = f"{name} is too short: it covers {each.length} bytes, {needed} are needed"
    elif state == FragmentState.CORRUPT and not each.verified:
        kind = "fragment-noted-corrupt"
        what = f"{name} is noted as corrupt: bytes did not match their checksum when it was read"
        todo = "--verify says whether this file's bytes are among them; " + _MADE_ANEW
    elif state == FragmentState.CORRUPT:
        kind = "fragment-noted-corrupt"
        what = f"{name} is noted as corrupt, but all that this file needs of it is good"
    elif state == FragmentState.LOST:
        kind = "fragment-noted-lost"
        what = f"{name} is noted as lost, but its server has it"
        todo = "it counts again when its disk reports it to the master: restart its server"
    if not kind:
        return None
    index, disk = each.fragment.index, each.fragment.disk
    return Finding(kind, what, todo, chunk.chunk, index, disk, each.address)


# ------------------------------------------------------------------ sentences about writing


def writing_sentence(facts: Facts) -> str:
    """Whether new data of the file can be written, and how; "" where nobody asked."""
    writing = facts.writing
    if facts.may_not_write:
        return f"you may not write it: {facts.may_not_write}"
    if writing is None:
        return ""
    if writing.refused:
        return f"new data cannot be written now: {writing.refused}"
    policy = f"policy {facts.policy.name} ({facts.policy.redundancy})" if facts.policy else "policy"
    if writing.got < writing.wanted:
        return f"new data gets {writing.got} of {writing.wanted} fragments now ({policy})"
    return f"new data gets all {_plural(writing.wanted, 'fragment')} ({policy})"


def _writing_findings(facts: Facts) -> Iterable[Finding]:
    writing = facts.writing
    if writing is None or facts.may_not_write:
        return
    if writing.refused:
        yield Finding("cannot-write", writing_sentence(facts), writing.hint)
    elif writing.got < writing.wanted:
        todo = "bring servers or disks back, or add some: what is written meanwhile is less safe"
        yield Finding("writes-degraded", writing_sentence(facts), todo)


# ------------------------------------------------------------------ sentences about paths


def _explain_fault(fault: PathFault) -> Finding:
    at, parent = show(fault.at), show(fault.parent)
    what, todo = f"{at}: {os.strerror(fault.number)}", ""
    match fault.number:
        case errno.ENOENT if fault.target is not None:
            what = f"{at} is a symbolic link to {show(fault.target)}, which is not there"
            todo = f"see `dfs ls -l {parent}`; mend the link, or what it points to"
        case errno.ENOENT:
            what = f"{parent} has no entry {show(fault.at.rpartition(b'/')[2])!r}"
            todo = f"`dfs ls {parent}` shows what is there"
        case errno.ENOTDIR:
            what = f"{parent} is no directory, so nothing can be below it"
        case errno.EACCES:
            what = f"you may not look into {parent}: {_owned(fault.directory)}"
            todo = "ask its owner, or run this as a user who may"
        case errno.ELOOP:
            what = f"{at} goes through too many symbolic links: do they point to each other?"
    return Finding(f"path-{errno.errorcode.get(fault.number, 'fails').lower()}", what, todo)


def _owned(inode: Inode | None) -> str:
    if inode is None:
        return "permission denied"
    return f"it belongs to user {inode.uid}, group {inode.gid}, mode {inode.mode & 0o7777:04o}"


# ------------------------------------------------------------------ words


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _disks(number: int, more: str = "") -> str:
    return "1 " + more + "disk" if number == 1 else f"{number} {more}disks"


def _since(heard_s: float) -> str:
    return f"for {heard_s:.0f} s" if heard_s >= 0 else "since the master started"


def chunk_sentence(facts: ChunkFacts) -> str:
    """One line about a chunk, for a list of them."""
    chunk, standing = facts.chunk, stand(facts)
    text = (
        f"chunk {chunk.chunk} ({Redundancy(chunk.k, chunk.m)}): "
        f"{standing.readable} of {chunk.k + chunk.m} fragments can be read, {chunk.k} "
        f"{'is' if chunk.k == 1 else 'are'} needed"
    )
    if standing.survives > 0:
        return f"{text}; survives the loss of {_disks(standing.survives, 'more ')}"
    return f"{text}; no loss more can be borne" if not standing.survives else text
