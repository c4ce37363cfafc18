"""The `dfs` program.

- `app`         the commands together, global options, errors and exit status
- `transfer`    upload, download
- `listing`     ls, tree, stat
- `files`       cat, mkdir, rm, mv, cp, ln
- `attributes`  chmod, chown, touch
- `finding`     find
- `usage`       du, df
- `locating`    locate
- `explaining`  why
- `policies`    dfs policy
- `admin`       dfs admin
- `daemons`     dfs master, dfs chunkserver
- `dev`         dfs dev, on `devcluster`, `process` and `ports`

Below them: `connect` (which cluster, and a clean stop), `failures` (how errors are said), `render`
(tables, JSON, progress), `walking` (trees), `streams` (stdin and stdout), `names`, `modes`,
`owners`, `arguments`.

Modules of commands are imported at every start, so what is slow to load (trio, the client, rich)
is imported inside the functions that need it.
"""
