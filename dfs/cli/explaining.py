"""`dfs why`: why a file can or cannot be read and written now, and what to do about it."""

from collections.abc import Iterable
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dfs.cli import render
from dfs.cli.arguments import Json, RemotePath, examples
from dfs.cli.connect import run
from dfs.cli.failures import DONE, FAILED
from dfs.cli.locating import describe_chunk, describe_fragment
from dfs.cli.modes import type_name
from dfs.cli.names import document, remote_path, show

if TYPE_CHECKING:
    from dfs.client import Client
    from dfs.client.diagnosis import ChunkFacts, Diagnosis, Facts

_LISTED_MAX: Final = 20
"""Findings, and chunks, that a person is shown; --json has all."""


def register(app: typer.Typer) -> None:
    app.command("why", epilog=examples("dfs why /photos/a.jpg", "dfs why --verify /photos/a.jpg"))(
        why
    )


def why(
    path: RemotePath,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read the file from every fragment, and check it all."),
    ] = False,
    json: Json = False,
) -> int:
    """Explain why reading or writing a file fails, or could fail.

    Asks the master and every chunk server that has a part of the file: what is wrong, what still
    protects the data, what to do. Exit status 0: it reads now, and the next loss of a disk loses
    nothing that its policy protects; 1: it does not, or is at risk.
    """
    wanted = remote_path(path)

    async def body(client: "Client") -> int:
        from dfs.client.diagnosis import diagnose
        from dfs.client.fact_finding import examine

        facts = await examine(client, wanted, verify=verify)
        diagnosis = diagnose(facts)
        if json:
            render.emit_json(_describe(facts, diagnosis))
        else:
            for line in _lines(facts, diagnosis):
                print(show(line))
        return DONE if diagnosis.is_safe else FAILED

    return run(body)


def _lines(facts: "Facts", diagnosis: "Diagnosis") -> Iterable[str]:
    from dfs.client.diagnosis import Verdict, chunk_sentence, stand, writing_sentence

    yield diagnosis.summary
    listed = diagnosis.findings[:_LISTED_MAX]
    for finding, following in zip_longest(listed, listed[1:]):
        if finding.what not in diagnosis.summary:
            yield f"- {finding.what}"
        # Several in a row may be mended by the same.
        if finding.todo and (following is None or following.todo != finding.todo):
            yield f"  what to do: {finding.todo}"
    if (more := len(diagnosis.findings) - _LISTED_MAX) > 0:
        yield f"- and {more} more; --json has them all"
    weak = [each for each in facts.chunks if stand(each).verdict is not Verdict.FINE]
    for each in weak[:_LISTED_MAX]:
        yield chunk_sentence(each)
    if (more := len(weak) - _LISTED_MAX) > 0:
        yield f"and {more} more chunks like these"
    told = any(
        finding.kind in ("cannot-write", "writes-degraded") for finding in diagnosis.findings
    )
    if not told and (writing := writing_sentence(facts)):
        yield writing


def _describe(facts: "Facts", diagnosis: "Diagnosis") -> dict[str, Any]:
    inode, writing = facts.inode, facts.writing
    return {
        **document("path", facts.path),
        "inode": inode.ino if inode else None,
        "type": type_name(inode.mode) if inode else None,
        "size": inode.size if inode else None,
        "policy": facts.policy.name if facts.policy else None,
        "verdict": diagnosis.verdict.value,
        "safe": diagnosis.is_safe,
        "survives": diagnosis.survives,
        "verified": facts.verified,
        "summary": diagnosis.summary,
        "findings": [
            {
                "kind": finding.kind,
                "what": finding.what,
                "todo": finding.todo,
                "chunk": finding.chunk or None,
                "fragment": finding.fragment if finding.fragment >= 0 else None,
                "disk": finding.disk or None,
                "address": finding.address or None,
            }
            for finding in diagnosis.findings
        ],
        "writing": None
        if writing is None
        else {
            "possible": not (writing.refused or facts.may_not_write),
            "fragments": writing.got,
            "wanted": writing.wanted,
            "refused": facts.may_not_write or writing.refused,
            "todo": writing.hint,
        },
        "chunks": [_describe_chunk(each) for each in facts.chunks],
    }


def _describe_chunk(facts: "ChunkFacts") -> dict[str, Any]:
    from dfs.client.diagnosis import stand

    locations = {each.fragment.disk: each.location for each in facts.fragments if each.location}
    paths = {each.fragment.disk: each.disk_path for each in facts.fragments}
    standing = stand(facts)
    return {
        **describe_chunk(facts.chunk, locations),
        "verdict": standing.verdict.value,
        "readable_fragments": standing.readable,
        "survives": standing.survives,
        "unreadable_bytes": standing.unreadable_bytes,
        "fragments": [
            {
                **describe_fragment(each.fragment, locations, paths),
                "answer": each.answer.value,
                "said": each.said,
                "length": each.length,
                "damaged": [list(pair) for pair in each.damaged],
            }
            for each in facts.fragments
        ],
    }
