"""Throughput of one big file, against `dd` on the same disk in the same run."""

import subprocess
import sys
from pathlib import Path

from scripts.benchmarks import harness
from scripts.benchmarks.harness import MIB, DevCluster, Report

REPEATS = 3
"""Disks vary: each figure is the best of so many, and its yardstick too."""


def measure(report: Report, cluster: DevCluster, source: Path, scratch: Path) -> None:
    size_mib = source.stat().st_size / MIB
    client_peak = 0
    for redundancy, copies in (("rep:1", 1), ("rep:3", 3)):
        name = redundancy.replace(":", "")
        cluster.dfs("policy", "create", name, "--redundancy", redundancy)
        cluster.dfs("mkdir", f"/{name}")
        cluster.dfs("policy", "set", f"/{name}", name)
        dd_s = upload_s = float("inf")
        for repeat in range(REPEATS):
            harness.warm_cache(source)
            dd_s = min(dd_s, harness.dd_write(source, scratch / "dd"))
            run = cluster.dfs("upload", source, f"/{name}/file{repeat}")
            upload_s = min(upload_s, run.seconds)
            client_peak = max(client_peak, run.peak_bytes)
        report.add(f"dd write ({redundancy} run)", size_mib / dd_s, "MiB/s")
        report.add(f"upload {redundancy}", size_mib / upload_s, "MiB/s")
        ratio = dd_s * copies / upload_s
        report.add(f"upload {redundancy} / (dd / {copies})", ratio, "", at_least=0.7)

        warm_s = cold_s = dd_cold_s = float("inf")
        for _ in range(REPEATS):
            run = cluster.dfs("download", f"/{name}/file0", "-", stdout=subprocess.DEVNULL)
            warm_s = min(warm_s, run.seconds)
            client_peak = max(client_peak, run.peak_bytes)
        report.add(f"download {redundancy}, warm", size_mib / warm_s, "MiB/s", at_least=500)
        for _ in range(REPEATS):
            harness.drop_cache(source)
            dd_cold_s = min(dd_cold_s, harness.dd_read(source))
            cluster.drop_caches()
            run = cluster.dfs("download", f"/{name}/file0", "-", stdout=subprocess.DEVNULL)
            cold_s = min(cold_s, run.seconds)
        report.add(f"dd read, cold ({redundancy} run)", size_mib / dd_cold_s, "MiB/s")
        report.add(f"download {redundancy}, cold", size_mib / cold_s, "MiB/s")
        report.add(f"download {redundancy} / dd, cold", dd_cold_s / cold_s, "", at_least=0.8)
        cluster.dfs("rm", "-r", f"/{name}")
    servers = max(cluster.peak_bytes(name) for name in cluster.server_names())
    report.add("client, peak memory", client_peak / MIB, "MiB", at_most=500)
    report.add("chunk server, peak memory", servers / MIB, "MiB", at_most=300)
    report.add("master, peak memory", cluster.peak_bytes("master") / MIB, "MiB", at_most=300)


def main() -> int:
    args = harness.parser(__doc__ or "").parse_args()
    report = Report("data")
    with harness.workplace(args.dir) as work:
        source = harness.random_file(work / "random", int(1024 * MIB * args.scale))
        with harness.dev_cluster(work / "cluster", 3) as cluster:
            measure(report, cluster, source, work)
    return report.finish(args.json)


if __name__ == "__main__":
    sys.exit(main())
