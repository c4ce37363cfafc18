"""`scripts/bench growth`: its tables and plot, and one axis of it in small."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from scripts.benchmarks.growth import plot
from scripts.benchmarks.growth.series import Axis, markdown
from scripts.benchmarks.harness import REPOSITORY, environment


def an_axis() -> Axis:
    axis = Axis("files", unit="B")
    for x, rate, spent in ((4096, 100.0, 2.0), (65536, 90.0, 4.0), (1 << 30, 50.0, 8.0)):
        axis.add(x, "creates", rate, "/s", flat=0.8)
        axis.add(x, "processor", spent, "us", less_is_better=True)
    return axis


def test_the_ratio_is_below_one_where_it_got_worse() -> None:
    creates, processor = an_axis().series
    assert creates.ratio == 0.5
    assert processor.ratio == 0.25


def test_a_table_has_a_column_for_each_place() -> None:
    table = markdown([an_axis()]).splitlines()
    assert table[0] == "| files | 4 KiB | 64 KiB | 1 GiB |"
    assert table[2] == "| creates, /s | 100 | 90 | 50 |"


def test_the_plot_has_a_line_for_each_figure() -> None:
    picture = ET.fromstring(plot.svg([an_axis(), an_axis()]))
    titles = [each.text for each in picture.iter() if each.get("class") == "title"]
    assert titles == ["files", "files"]
    lines = [each for each in picture.iter() if each.get("class") == "line"]
    assert len(lines) == 2 * 2 * 2  # each also in the legend


def test_it_measures_files_of_a_size(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "scripts.benchmarks.growth", "--axis", "sizes", "--most", "0"]
    argv += ["--dir", str(tmp_path), "--out", str(tmp_path / "out")]
    subprocess.run(argv, check=True, cwd=REPOSITORY, env=environment(), stdin=subprocess.DEVNULL)
    (axis,) = json.loads((tmp_path / "out/growth.json").read_text())
    names = [series["name"] for series in axis["series"]]
    assert names == ["written, with fsync", "one file written", "read, cold", "one file read"]
    assert all(value > 0 for series in axis["series"] for _, value in series["points"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
