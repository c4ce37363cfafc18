"""Bytes on the servers' disks per byte stored: real text under ec:4+2 with default compression."""

import sys
import sysconfig
from pathlib import Path

from scripts.benchmarks import harness
from scripts.benchmarks.harness import MIB, Report


def gather_text(target: Path, size: int) -> int:
    """Source code and documents of this machine, one after the other, each once."""
    roots = (Path(sysconfig.get_path("stdlib")), Path("/usr/share/doc"), Path("/usr/include"))
    written = 0
    with open(target, "wb") as out:
        for root in roots:
            for path in sorted(root.rglob("*")):
                if written >= size:
                    return written
                if path.suffix in {".py", ".h", ".txt", ".md", ".rst", ""} and path.is_file():
                    data = path.read_bytes()[: size - written]
                    if b"\0" not in data[:4096]:
                        written += out.write(data)
    return written


def main() -> int:
    args = harness.parser(__doc__ or "").parse_args()
    report = Report("space")
    with harness.workplace(args.dir) as work:
        size = gather_text(work / "text", int(128 * MIB * args.scale))
        with harness.dev_cluster(work / "cluster", 6) as cluster:
            cluster.dfs("mkdir", "/ec")
            cluster.dfs("policy", "set", "/ec", "ec")
            before = cluster.stored_bytes()
            cluster.dfs("upload", work / "text", "/ec/text")
            stored = cluster.stored_bytes() - before
            report.add("text stored", size / MIB, "MiB")
            report.add("on disk, ec:4+2", stored / MIB, "MiB")
            report.add("bytes on disk per byte", stored / size, "", at_most=0.6)
    return report.finish(args.json)


if __name__ == "__main__":
    sys.exit(main())
