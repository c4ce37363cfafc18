"""The `dfs` program: its commands, and how it ends.

`main` is the one place where an error becomes a line on stderr and an exit status: 0 done,
1 an operation failed, 2 wrong usage, 128 + N stopped by signal N.
"""

import contextlib
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Final

import typer

import dfs
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

_COMMANDS: Final = {
    "upload": "transfer",
    "download": "transfer",
    "ls": "listing",
    "tree": "listing",
    "stat": "listing",
    "cat": "files",
    "mkdir": "files",
    "rm": "files",
    "mv": "files",
    "cp": "files",
    "ln": "files",
    "chmod": "attributes",
    "chown": "attributes",
    "touch": "attributes",
    "find": "finding",
    "du": "usage",
    "df": "usage",
    "locate": "locating",
    "safety": "safety",
    "why": "explaining",
    "policy": "policies",
    "mount": "mounting",
    "umount": "mounting",
    "admin": "admin",
    "master": "daemons",
    "chunkserver": "daemons",
    "dev": "dev",
}
"""Each command, and the module that registers it: only that one is imported, to start quickly."""


def build_app(command: str = "") -> typer.Typer:
    """The program with one command, or with all of them where there is none of that name."""
    app = typer.Typer(
        name=PROGRAM,
        help="A distributed file system: files in a cluster of chunk servers, under one tree.",
        epilog="Global options may also follow the command. `dfs COMMAND --help` tells more.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(global_options)
    names = [_COMMANDS[command]] if command in _COMMANDS else dict.fromkeys(_COMMANDS.values())
    for name in names:
        importlib.import_module(f"dfs.cli.{name}").register(app)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {dfs.__version__}")
        raise typer.Exit


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


def hoist(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The command, and the arguments with global options moved before it.

    So that `dfs ls / --master HOST:PORT` works too. `chunkserver` has a --master of its own, which
    stays.
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
    return command, [*moved, *rest]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `dfs ARGUMENTS` (of the process, by default). Returns the exit status."""
    _occupy_standard_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            # A name must never stop a listing, whatever the terminal's character set.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    status = _run(sys.argv[1:] if arguments is None else arguments)
    return max(status, _flush())


def _run(arguments: Sequence[str]) -> int:
    try:
        command, arguments = hoist(arguments)
        status = build_app(command)(args=arguments, prog_name=PROGRAM, standalone_mode=False)
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


def _occupy_standard_descriptors() -> None:
    """Where stdin, stdout or stderr is closed, let no file or connection take its number.

    What then writes to descriptor 2, say, would write into that.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


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
