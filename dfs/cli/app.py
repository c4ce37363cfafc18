"""The `dfs` program: its commands, and how it ends.

`main` is the one place where an error becomes a line on stderr and an exit status: 0 done,
1 an operation failed, 2 wrong usage, 128 + N stopped by signal N.
"""

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Final

import typer

import dfs
from dfs.cli import (
    admin,
    attributes,
    daemons,
    dev,
    files,
    finding,
    listing,
    locating,
    policies,
    transfer,
    usage,
)
from dfs.cli.connect import options
from dfs.cli.failures import (
    BROKEN_PIPE,
    DONE,
    FAILED,
    USAGE,
    StoppedError,
    describe,
    leaves,
    say,
    status_of,
)
from dfs.core.errors import DfsError

PROGRAM: Final = "dfs"
_USAGE_ERROR: Final[type] = typer.BadParameter.__mro__[1]
"""typer does not export the base class of its wrong-usage errors."""

_HOISTED_FLAGS: Final = frozenset({"--verbose", "--quiet"})
_HOISTED_VALUES: Final = frozenset({"--master", "--on-unavailable"})

app = typer.Typer(
    name=PROGRAM,
    help="A distributed file system: files in a cluster of chunk servers, under one tree.",
    epilog="Global options may also follow the command. `dfs COMMAND --help` tells more.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help"], "max_content_width": 100},
)
for module in (transfer, listing, files, attributes, finding, usage, locating):
    module.register(app)
app.add_typer(policies.app, name="policy")
app.add_typer(admin.app, name="admin")
app.add_typer(dev.app, name="dev")
daemons.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {dfs.__version__}")
        raise typer.Exit


@app.callback()
def global_options(
    master: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT[,...]",
            help="The master (or masters). Else DFS_MASTER, else a local dev cluster that runs.",
        ),
    ] = None,
    on_unavailable: Annotated[
        str | None,
        typer.Option(
            metavar="error|wait:TIME|wait",
            help="What to do while servers cannot be reached. Else DFS_ON_UNAVAILABLE, else "
            "wait:60s.",
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say on stderr what happens behind the scenes.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress bars; servers log warnings only.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    options.master = master
    options.on_unavailable = on_unavailable or os.environ.get("DFS_ON_UNAVAILABLE") or None
    options.verbose = verbose
    options.quiet = quiet
    options.tracebacks = verbose
    logger = logging.getLogger("dfs")
    if verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    else:
        # What a user has to know is in the errors; the library's warnings are for --verbose.
        logger.addHandler(logging.NullHandler())


def hoist(arguments: Sequence[str]) -> list[str]:
    """Global options that follow the command, moved before it: `dfs ls / --master HOST:PORT`.

    `chunkserver` has a --master of its own, which stays.
    """
    moved: list[str] = []
    rest: list[str] = []
    command = ""
    pending = iter(arguments)
    for argument in pending:
        name, equals, _ = argument.partition("=")
        if argument == "--":
            rest += [argument, *pending]
        elif argument in _HOISTED_FLAGS:
            moved.append(argument)
        elif name in _HOISTED_VALUES and command != "chunkserver":
            moved.append(argument)
            if not equals:
                moved += [value for value in [next(pending, None)] if value is not None]
        else:
            if not command and not argument.startswith("-"):
                command = argument
            rest.append(argument)
    return [*moved, *rest]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `dfs ARGUMENTS` (of the process, by default). Returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            # A name must never stop a listing, whatever the terminal's character set.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    status = _run(hoist(sys.argv[1:] if arguments is None else arguments))
    return max(status, _flush())


def _run(arguments: list[str]) -> int:
    try:
        status = app(args=arguments, prog_name=PROGRAM, standalone_mode=False)
        return status if isinstance(status, int) else DONE
    except BaseException as error:
        return _end(error)


def _end(error: BaseException) -> int:
    """Say what ended the command; its exit status."""
    causes = list(leaves(error))
    for cause in causes:
        if isinstance(cause, StoppedError):
            say("stopped; it is safe to run the same command again")
            return 128 + cause.number
        if isinstance(cause, KeyboardInterrupt | typer.Abort):
            say("stopped; it is safe to run the same command again")
            return 130
        if isinstance(cause, BrokenPipeError) and not isinstance(cause, DfsError):
            _discard_stdout()
            return BROKEN_PIPE
    status = DONE
    for message, code in dict.fromkeys(map(_explain, causes)):
        if message:
            say(message)
        status = max(status, code)
    return status


def _explain(error: BaseException) -> tuple[str, int]:
    """The line for one error, and its exit status."""
    if isinstance(error, SystemExit):
        return "", error.code if isinstance(error.code, int) else FAILED
    if isinstance(error, _USAGE_ERROR):
        return _explain_usage(error), USAGE
    if isinstance(error, OSError):
        return describe(error), status_of(error)
    where = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" at {os.path.basename(where[0].filename)}:{where[0].lineno}" if where else ""
    if options.tracebacks:
        traceback.print_exception(error)
    return (
        f"internal error: {describe(error)}{place}; this is a bug in dfs, please report it "
        "(--verbose shows more)",
        FAILED,
    )


def _explain_usage(error: BaseException) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else PROGRAM
    message = " ".join(str(error.format_message()).split()).rstrip(".")  # type: ignore[attr-defined]
    if type(error).__name__ == "NoArgsIsHelpError":
        print(context.get_help() if context else "", file=sys.stderr)
        message = "a command is missing"
    elif command == PROGRAM:
        pass
    else:
        message = f"{command.removeprefix(PROGRAM + ' ')}: {message}"
    return f"{message}; see `{command} --help`"


def _flush() -> int:
    """Push out what is still buffered, as long as its failure can be reported."""
    if sys.stdout is None:
        return DONE
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
        return BROKEN_PIPE
    except OSError as error:
        _discard_stdout()
        say(f"standard output: {error.strerror}")
        return FAILED
    return DONE


def _discard_stdout() -> None:
    """Nobody reads on; keep Python from failing over what is still buffered when it exits."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
