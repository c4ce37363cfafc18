"""`python -m dfs`, and the `dfs` script, are the `dfs` program.

Imports nothing by itself, so that Ctrl-C in the first moments ends it as quietly as later.
"""

import sys


def main() -> int:
    """Run the command line of the process; the exit status."""
    try:
        from dfs.cli.app import main as run  # noqa: PLC0415 - see above

        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
