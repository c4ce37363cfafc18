"""`dfs mount` and `dfs umount`."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dfs.cli import mount_process
from dfs.cli.arguments import examples, local_path
from dfs.cli.connect import master_address, options
from dfs.cli.failures import DONE, say
from dfs.cli.logs import start_logging
from dfs.cli.names import show
from dfs.core.errors import ConfigError
from dfs.core.units import parse_size

if TYPE_CHECKING:
    from dfs_fuse.options import MountOptions


def register(app: typer.Typer) -> None:
    app.command(
        "mount",
        epilog=examples(
            "dfs mount /mnt/dfs",
            "dfs mount /mnt/photos --root /photos --read-only",
            "dfs mount ~/dfs -o attr_cache=5s,on_unavailable=wait:10m --cache-size 2G",
        ),
    )(mount)
    app.command("umount", epilog=examples("dfs umount /mnt/dfs", "dfs umount --lazy ~/dfs"))(umount)


Point = Annotated[
    str, typer.Argument(metavar="POINT", help="A local directory.", show_default=False)
]


def mount(
    point: Point,
    root: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The directory of the cluster to mount; / by default."),
    ] = None,
    driver: Annotated[
        str | None,
        typer.Option(
            metavar="auto|fusepy|pyfuse3",
            help="What speaks to the kernel. auto: pyfuse3 where it is installed, else fusepy.",
        ),
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", "-f", help="Stay, log to stderr, unmount on Ctrl-C.")
    ] = False,
    words: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            metavar="OPT,...",
            help="allow_other, ro, nosuid, nodev, noexec, noatime, attr_cache=TIME (1s), "
            "cache_size=SIZE, on_unavailable=CHOICE, max_read=SIZE, fsname=NAME, profile, and "
            "what fstab says to others.",
        ),
    ] = None,
    cache_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory for data, read and being written; 512M."),
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Nothing can be changed through this mount.")
    ] = False,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Log how often operations came and how long they took."),
    ] = False,
    log: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Where to log to. In the background else /var/log/dfs, or ~/.local/state/dfs.",
        ),
    ] = None,
    ready_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> int:
    """Mount the cluster, or a directory of it, on a local directory; return when it answers.

    It goes on in the background until `dfs umount`, whatever becomes of the shell. Root's mounts
    are for all users (-o noallow_other: for root alone), those of others for themselves.
    """
    starter = mount_process.Starter(ready_fd)
    with starter.told():
        master = master_address()
        wanted = _options(point, words or [], root, driver, cache_size)
        wanted = replace(
            wanted,
            read_only=wanted.read_only or read_only,
            profile=wanted.profile or profile,
            log_file=os.path.abspath(log) if log else wanted.log_file,
        )
        if foreground:
            from dfs_fuse.mount import run

            # Where a starter waits, it has put our stderr into the file.
            to_file = wanted.log_file if ready_fd is None else None
            start_logging(Path(to_file) if to_file else None)
            run(replace(wanted, fsname=_source(wanted, master)), master, starter.ready)
            return DONE
    _in_background(wanted, master)
    return DONE


def _options(
    point: str,
    words: list[str],
    root: str | None,
    driver: str | None,
    cache_size: str | None,
) -> "MountOptions":
    """Raises ConfigError that names what is wrong. Flags win over `-o`."""
    from dfs_fuse import options as mount_options
    from dfs_fuse.mount_table import canonical

    wanted = mount_options.MountOptions(
        point=canonical(local_path(point, "POINT")),
        allow_other=os.geteuid() == 0,
        on_unavailable=options.on_unavailable,
    )
    if options.on_unavailable is not None:
        mount_options.parse_on_unavailable(options.on_unavailable)
    wanted = mount_options.with_words(wanted, words)
    try:
        if root is not None:
            wanted = replace(wanted, root=mount_options.parse_root(root))
        if driver is not None:
            wanted = replace(wanted, driver=mount_options.parse_driver(driver))
        if cache_size is not None:
            wanted = replace(wanted, cache_bytes=parse_size(cache_size))
    except ConfigError as error:
        raise ConfigError(f"mount: {error.message}", hint=error.hint) from None
    return wanted


def _source(wanted: "MountOptions", master: str) -> str:
    """What the kernel shows as the device."""
    return wanted.fsname or f"{master}:{show(wanted.root)}"


def _in_background(wanted: "MountOptions", master: str) -> None:
    from dfs_fuse.preconditions import check

    check(wanted)  # before there is a process, and a log
    log = Path(wanted.log_file) if wanted.log_file else mount_process.default_log(wanted.point)
    process = mount_process.start(master, wanted.point, log, _arguments(wanted))
    if not options.quiet:
        source, at = _source(wanted, master), show(wanted.point)
        print(f"Mounted {source} on {at} (pid {process.pid}, log {show(str(log))})")


def _arguments(wanted: "MountOptions") -> list[str]:
    """What a process needs to be told to mount just so."""
    arguments = ["--root", os.fsdecode(wanted.root), "--driver", wanted.driver]
    arguments += ["--cache-size", str(wanted.cache_bytes)]
    arguments += ["-o", "allow_other" if wanted.allow_other else "noallow_other"]
    arguments += ["-o", f"attr_cache={wanted.attr_cache_s:f}"]
    arguments += [word for flag in wanted.kernel_flags for word in ("-o", flag)]
    if wanted.max_read_bytes is not None:
        arguments += ["-o", f"max_read={wanted.max_read_bytes}"]
    if wanted.on_unavailable is not None:
        arguments += ["-o", f"on_unavailable={wanted.on_unavailable}"]
    if wanted.fsname:
        arguments += ["-o", f"fsname={wanted.fsname}"]
    flags = {
        "--read-only": wanted.read_only,
        "--profile": wanted.profile,
        "--verbose": options.verbose,
        "--quiet": options.quiet,
    }
    return arguments + [flag for flag, given in flags.items() if given]


def umount(
    point: Point,
    lazy: Annotated[
        bool,
        typer.Option(
            "--lazy", "-l", help="Where it is busy: take it out of sight, end it with its last use."
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", "-f", help="End it, though it is busy, does not answer, or cannot flush."
        ),
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0.1, help="How long flushing, and ending, may take."),
    ] = 120.0,
) -> int:
    """Flush a mount, unmount it, and return when its process has ended.

    Also clears the mount point of a process that was killed.
    """
    from dfs_fuse.unmount import unmount

    point = os.path.abspath(local_path(point, "POINT"))
    os.chdir("/")  # where we stand must not be what keeps it busy
    done = unmount(point, lazy=lazy, force=force, timeout_s=timeout)
    if done.was_dead:
        print(f"Cleared {show(done.point)}: the process of that mount had gone.")
    elif not options.quiet:
        print(f"Unmounted {show(done.point)}")
    if done.note:
        say(f"{show(done.point)}: {done.note.rstrip('; ')}")
    return DONE
