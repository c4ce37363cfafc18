"""`python -m dfs` is the `dfs` program."""

import sys

from dfs.cli.app import main

sys.exit(main())
