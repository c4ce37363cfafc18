"""`scripts/bench peers`: what it concludes from figures, and that nothing of it stays."""

import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from scripts.benchmarks.harness import REPOSITORY, environment
from scripts.benchmarks.peers import __main__ as command
from scripts.benchmarks.peers import enclosure, plot
from scripts.benchmarks.peers.inside import LAST, ONCE, REPEATED
from scripts.benchmarks.peers.results import ColumnResult, Figure, Results
from scripts.benchmarks.peers.rows import ROWS, WORKLOADS
from scripts.benchmarks.peers.system import Program, missing
from scripts.benchmarks.peers.systems import SYSTEMS
from scripts.benchmarks.peers.table import markdown
from scripts.benchmarks.peers.verdicts import Bound, Verdict, verdicts

enclosed = pytest.mark.skipif(
    bool(enclosure.obstacles()), reason=f"no enclosure here: {enclosure.obstacles()}"
)


def column(name: str, **figures: float) -> ColumnResult:
    """As measured: `write=1.0` is the row of that name, `_` for `-`."""
    for system in SYSTEMS.values():
        for known in system.columns:
            if known.name == name:
                return ColumnResult(
                    name,
                    known.title,
                    system.name,
                    known.redundancy,
                    judged=known.judged,
                    figures={
                        row.replace("_", "-"): Figure([value]) for row, value in figures.items()
                    },
                )
    raise LookupError(name)


def results(*columns: ColumnResult) -> Results:
    made = Results.begin(scale=1, repeat=1)
    made.columns.extend(columns)
    return made


def only(*columns: ColumnResult) -> Verdict:
    (verdict,) = verdicts(columns)
    return verdict


# ------------------------------------------------------------------ conclusions


def test_the_bound_is_the_best_peer_with_as_many_copies_times_the_factor() -> None:
    peers = [column("moosefs-3", write=70), column("ceph", write=90)]
    others = [column("local", write=900), column("moosefs-2", write=120)]
    verdict = only(column("dfs-3", write=110), *peers, *others)
    assert verdict.bound == Bound(1.3 * 90, "1.3 × CephFS")
    assert not verdict.reached
    assert verdict.share == pytest.approx(110 / 117)
    assert only(column("dfs-3", write=118), *peers, *others).reached


def test_where_less_is_better_the_least_of_the_peers_is_the_bound() -> None:
    peers = [column("moosefs-3", cpu_client_write=2.5), column("gluster-3", cpu_client_write=4)]
    assert only(column("dfs-3", cpu_client_write=2.9), *peers).reached
    verdict = only(column("dfs-3", cpu_client_write=6), *peers)
    assert (verdict.bound.value, verdict.share) == (3.0, 0.5)


def test_a_peer_that_does_not_reach_the_disk_is_no_rival_in_synced_writes() -> None:
    verdict = only(
        column("dfs-3", fsync=400), column("moosefs-3", fsync=574), column("ceph", fsync=100)
    )
    assert verdict.bound.because == "1.5 × CephFS"


def test_erasure_coding_and_single_copies_have_bounds_of_their_own() -> None:
    peers = [column("gluster-ec", write=58), column("juicefs", write=89)]
    found = verdicts([column("dfs-ec", write=100), column("dfs-1", write=100), *peers])
    assert [(each.column.name, each.bound.value, each.reached) for each in found] == [
        ("dfs-ec", 116, False),
        ("dfs-1", 89, True),
    ]


def test_the_driver_that_is_not_preferred_is_shown_and_not_judged() -> None:
    ours = [column("dfs-3", write=110), column("dfs-3-fusepy", write=60)]
    assert only(*ours, column("ceph", write=90)).column.name == "dfs-3"
    assert "| sequential write + fsync, MiB/s | 110 | 60.0 |" in markdown(results(*ours))


def test_a_fixed_bound_needs_no_peer_and_a_missing_peer_gives_no_verdict() -> None:
    found = verdicts([column("dfs-3", resident=40, create_1=5000)])
    assert [(each.row.name, each.bound.because, each.reached) for each in found] == [
        ("resident", "fixed", True)
    ]


def test_every_row_comes_from_a_workload_that_runs() -> None:
    assert set(WORKLOADS) == {*ONCE, *REPEATED, *LAST}
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert all(row.goals for row in ROWS)


# ------------------------------------------------------------------ documents


def test_what_was_measured_before_a_sudden_end_is_kept(tmp_path: Path) -> None:
    measured = column("ceph")
    measured.take(
        '{"row": "write", "value": 80.0, "others": 0.1}\n'
        '{"row": "write", "value": 90.0, "others": 0.7}\n'
        '{"workload": "kill", "error": "OSError: no"}\n{"row": "read-co'
    )
    assert measured.figures["write"] == Figure([80.0, 90.0], 0.7)
    assert measured.errors == {"kill": "OSError: no"}
    document = results(measured)
    document.save(tmp_path / "peers.json")
    assert Results.load(tmp_path / "peers.json") == document


def test_turns_add_to_the_same_column() -> None:
    document = results()
    ((system, known),) = command.choose_columns("ceph")
    for value in (1.0, 3.0, 2.0):
        measured = document.column(system.name, known, ())
        measured.take(json.dumps({"row": "write", "value": value, "others": 0.0}))
    (measured,) = document.columns
    assert measured.figures["write"].median == 2.0


def test_the_table_marks_uncertain_figures_and_names_what_failed() -> None:
    ours, theirs = column("dfs-3", write=110, text=0.7), column("seaweedfs-3", write=50, text=0.8)
    theirs.figures["write"].others = 0.9
    theirs.errors["kill"] = "OSError: no"
    text = markdown(results(ours, theirs))
    assert "| sequential write + fsync, MiB/s | 110 | 50.0~ |" in text
    assert "Provisional" in text
    assert "2 of 2 reached." in text
    assert "- SeaweedFS, kill: OSError: no" in text


def test_the_plot_is_a_small_valid_picture_of_all_columns() -> None:
    everything = [
        column(each.name, write=50 + number, cpu_client_read=3, resident=100, kill_write=0)
        for system in SYSTEMS.values()
        for number, each in enumerate(system.columns)
    ]
    picture = plot.svg(results(*everything))
    texts = {element.text for element in ET.fromstring(picture).iter() if element.text}
    assert {each.title for each in everything} <= texts
    assert len(picture) < 40_000


# ------------------------------------------------------------------ the command


def test_what_is_not_there_is_refused_with_what_there_is() -> None:
    with pytest.raises(
        SystemExit, match="no system or column 'hdfs'; there are local, dfs, moosefs"
    ):
        command.choose_columns("dfs,hdfs")
    with pytest.raises(SystemExit, match="no row 'wirte'; there are write, read-cold"):
        command.choose_rows("wirte")
    assert [each.name for _, each in command.choose_columns("ceph,dfs-ec,ceph")] == [
        "ceph",
        "dfs-ec",
    ]


def test_missing_programs_are_named_with_what_installs_them() -> None:
    programs = (Program("no-such-a", "a-server"), Program("no-such-b", "b-bin", from_pypi=True))
    said = missing((*programs, Program("sh", "dash")))
    assert said.startswith("no no-such-a, no-such-b here: apt-get install a-server; ")
    assert said.endswith("-m pip install b-bin")


def running_with(text: str) -> list[str]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                line = Path(f"/proc/{entry}/cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            if text in line:
                found.append(line)
    return found


@enclosed
def test_an_enclosure_takes_with_it_what_was_started_and_mounted_in_it(tmp_path: Path) -> None:
    lasts = "98765.4321"
    script = (
        f"mount -t tmpfs tmpfs {tmp_path}; touch {tmp_path}/inside; "
        f"setsid sleep {lasts} & (sleep {lasts} &) ; sleep {lasts}"
    )
    with pytest.raises(TimeoutError, match="not done within"):
        enclosure.run_enclosed(["sh", "-c", script], timeout_s=1.0)
    assert not running_with(lasts)
    assert not list(tmp_path.iterdir())


@enclosed
@pytest.mark.time_limit(90)
def test_a_run_that_is_interrupted_keeps_its_figures_and_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    argv = [sys.executable, "-m", "scripts.benchmarks.peers", "--only", "dfs-3-fusepy,local"]
    argv += ["--scale", "0.01", "--dir", str(place), "--out", str(tmp_path / "out")]
    argv += ["--rows", "create-4,fsync,kill-whole"]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(
        argv, cwd=REPOSITORY, env=environment(), stderr=pipe, stdout=null, text=True
    ) as run:
        assert run.stderr is not None
        said = ""
        while "write + fsync" not in said:
            said = run.stderr.readline()
            assert said, "it ended before it had measured anything"
        run.send_signal(signal.SIGINT)
        rest = run.stderr.read()
    assert run.returncode == 130
    assert "stopped; what was measured is kept" in rest
    assert not list(place.iterdir())
    assert not running_with(str(place))
    document = json.loads((tmp_path / "out" / "peers.json").read_text())
    (measured,) = document["columns"]
    assert measured["errors"] == {}
    assert {"create-4", "fsync"} <= set(measured["figures"])
    assert (tmp_path / "out" / "peers.svg").exists()
