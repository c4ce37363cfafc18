"""`dfs admin compact`: data that are written anew, by order."""

from typing import TYPE_CHECKING, Annotated

import typer

from dfs.cli.arguments import Json, examples
from dfs.cli.connect import run
from dfs.cli.job_views import finish, show_plan
from dfs.cli.working import (
    Bandwidth,
    DryRun,
    Wait,
    parse_bandwidth,
    parse_share,
)

if TYPE_CHECKING:
    from dfs.client import Client

app = typer.Typer(rich_markup_mode=None)
"""Part of `dfs admin`."""


@app.command(
    "compact",
    epilog=examples("dfs admin compact --dry-run", "dfs admin compact --threshold 30% --wait"),
)
def compact_command(
    threshold: Annotated[
        str,
        typer.Option(
            "--threshold", metavar="PERCENT", help="Chunks of which so much is of no use any more."
        ),
    ] = "50%",
    bandwidth: Bandwidth = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    json: Json = False,
) -> int:
    """Free the space of removed and overwritten data in chunks that hold other data still.

    What is still needed of them moves into new chunks. Clients go on meanwhile.
    """
    share, pace = parse_share(threshold), parse_bandwidth(bandwidth)

    async def body(client: "Client") -> int:
        if dry_run:
            plan = await client.admin.plan("compact", threshold=share, bandwidth=pace)
            return show_plan(plan, json)
        job = await client.admin.start("compact", threshold=share, bandwidth=pace)
        return await finish(client, job, wait, json)

    return run(body)
