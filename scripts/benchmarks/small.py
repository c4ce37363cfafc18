"""Many small files: `upload -r`, `download -r` and `rm -r` of 20,000 files of 4 KiB under rep:3."""

import os
import sys
from pathlib import Path

from scripts.benchmarks import harness
from scripts.benchmarks.harness import MIB, Report

PER_DIRECTORY = 500


def make_files(root: Path, count: int) -> None:
    for number in range(count):
        if number % PER_DIRECTORY == 0:
            directory = root / f"d{number // PER_DIRECTORY}"
            directory.mkdir(parents=True)
        (directory / f"f{number}").write_bytes(os.urandom(4096))


def main() -> int:
    args = harness.parser(__doc__ or "").parse_args()
    count = int(20_000 * args.scale)
    report = Report("small")
    with harness.workplace(args.dir) as work:
        make_files(work / "files", count)
        with harness.dev_cluster(work / "cluster", 3) as cluster:
            cluster.dfs("policy", "create", "rep3", "--redundancy", "rep:3")
            cluster.dfs("policy", "set", "/", "rep3")
            upload = cluster.dfs("upload", "-r", work / "files", "/files")
            report.add("upload -r", count / upload.seconds, "files/s", at_least=1500)
            download = cluster.dfs("download", "-r", "/files", work / "back")
            report.add("download -r", count / download.seconds, "files/s", at_least=2000)
            listing = cluster.dfs("ls", "-lR", "/files", stdout=os.open(os.devnull, os.O_WRONLY))
            report.add("ls -lR", count / listing.seconds, "files/s")
            copy = cluster.dfs("cp", "-r", "/files", "/copy")
            report.add("cp -r, inside", count / copy.seconds, "files/s")
            remove = cluster.dfs("rm", "-r", "/files")
            report.add("rm -r", count / remove.seconds, "files/s", at_least=5000)
            peak = max(upload.peak_bytes, download.peak_bytes)
            report.add("client, peak memory", peak / MIB, "MiB", at_most=500)
            servers = max(cluster.peak_bytes(name) for name in cluster.server_names())
            report.add("chunk server, peak memory", servers / MIB, "MiB", at_most=300)
            master = cluster.peak_bytes("master")
            report.add("master, peak memory", master / MIB, "MiB", at_most=300)
    return report.finish(args.json)


if __name__ == "__main__":
    sys.exit(main())
