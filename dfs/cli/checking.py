"""`dfs admin fsck`: check the metadata, and what the disks hold, while the cluster serves."""

import random
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dfs.cli import render
from dfs.cli.arguments import Json, examples
from dfs.cli.connect import run
from dfs.cli.failures import DONE, FAILED, say
from dfs.cli.names import show

if TYPE_CHECKING:
    from dfs.client import Client
    from dfs.wire.messages import CheckReply, Finding

_ASK_EVERY_S: Final = 0.2
_LISTED_MAX: Final = 50
"""Findings that a person is shown; --json has all."""


def register(app: typer.Typer) -> None:
    app.command("fsck", epilog=examples("dfs admin fsck", "dfs admin fsck --repair"))(fsck)


def fsck(
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Mend what can be mended without the danger of losing data."),
    ] = False,
    json: Json = False,
) -> int:
    """Check the metadata against itself and against what the disks hold.

    The cluster serves meanwhile. Exit status 0: all was checked, and is in order now; 1:
    something is wrong, or could not be checked. Inodes that have lost their name are put into
    /lost+found.
    """

    async def body(client: "Client") -> int:
        findings, last = await _watch(client, repair)
        if json:
            render.emit_json(_describe(findings, last))
        else:
            for line in _lines(findings, last):
                print(show(line))
        if last.error:
            say(f"the check could not be finished: {last.error}")
        return DONE if _is_sound(last) else FAILED

    return run(body)


def _is_sound(last: "CheckReply") -> bool:
    return not last.error and not last.unchecked and last.found == last.repaired


async def _watch(client: "Client", repair: bool) -> "tuple[list[Finding], CheckReply]":
    """Have the master check; all findings, and its last word."""
    import trio

    from dfs.client.progress import Progress
    from dfs.wire.messages import CheckReply, CheckStarted, ReadCheck, StartCheck

    link = client.meta.link
    started = await link.call(StartCheck(random.getrandbits(63), repair), CheckStarted)
    findings: list[Finding] = []
    phase = ""
    with ExitStack() as shown:
        while True:
            reply = await link.call(ReadCheck(started.check, len(findings)), CheckReply)
            findings += reply.findings
            if reply.finished and not reply.more:
                return findings, reply
            if reply.phase != phase:
                phase = reply.phase
                shown.close()
                bar = shown.enter_context(render.ProgressBar(phase, in_bytes=False))
            if phase:
                bar.update(Progress(files_done=reply.done, files_total=reply.total or None))
            if not reply.more:
                await trio.sleep(_ASK_EVERY_S)


def _lines(findings: "list[Finding]", last: "CheckReply") -> Iterable[str]:
    from dfs.wire.messages import Outcome

    words = {Outcome.FOUND: "", Outcome.REPAIRED: "repaired: ", Outcome.LEFT: "left: "}
    todo = ""
    for finding in findings[:_LISTED_MAX]:
        # Several in a row may be mended by the same.
        if todo and finding.todo != todo:
            yield f"  what to do: {todo}"
        yield f"- {words[finding.outcome]}{finding.what}"
        todo = finding.todo
    if todo:
        yield f"  what to do: {todo}"
    if (more := len(findings) - _LISTED_MAX) > 0:
        yield f"- and {more} more; --json has them all"
    for what in last.unchecked:
        yield f"- not checked: {what}"
    for note in last.notes:
        yield f"- {note}"
    yield _summary(last)


def _summary(last: "CheckReply") -> str:
    checked = (
        f"Checked {render.plural(last.inodes, 'inode')}, {render.plural(last.chunks, 'chunk')}, "
        f"{render.plural(last.fragments, 'fragment')}"
    )
    if not last.found:
        return f"{checked}: {'all in order' if _is_sound(last) else 'found nothing wrong'}"
    verdict = f"{checked}: {render.plural(last.found, 'problem')}, {last.repaired} repaired"
    if last.left:
        return f"{verdict}, {last.left} left"
    if last.repaired < last.found:
        return f"{verdict}; `dfs admin fsck --repair` mends what can be mended"
    return verdict


def _describe(findings: "list[Finding]", last: "CheckReply") -> dict[str, Any]:
    return {
        "sound": _is_sound(last),
        "error": last.error,
        "inodes": last.inodes,
        "chunks": last.chunks,
        "fragments": last.fragments,
        "found": last.found,
        "repaired": last.repaired,
        "left": last.found - last.repaired,
        "problems": [
            {
                "what": finding.what,
                "outcome": finding.outcome.name.lower(),
                "todo": finding.todo,
            }
            for finding in findings
        ],
        "unchecked": list(last.unchecked),
        "notes": list(last.notes),
    }
