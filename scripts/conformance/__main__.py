"""The command line of `scripts/posix`: runs, compares, prints a table, exits 1 where it must."""

import argparse
import itertools
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from scripts.conformance.cases import Case, NotHereError
from scripts.conformance.grounds import LOCAL, POLICIES, Ground, World, world
from scripts.conformance.known import reason_for
from scripts.conformance.programs import PROGRAMS
from scripts.conformance.suites import SUITES, Suite

DRIVERS = ("fusepy", "pyfuse3")


@dataclass
class Result:
    """One suite on one ground, compared with the local directory."""

    suite: str
    ground: str
    seconds: float
    passed: int = 0
    failed_locally_too: int = 0
    skipped: int = 0
    known: dict[str, str] = field(default_factory=dict)
    """Cases that failed as they are known to, with the reason."""
    unexpected: dict[str, str] = field(default_factory=dict)
    """Cases that pass locally and failed here, with what they said."""
    measured: dict[str, str] = field(default_factory=dict)

    def row(self) -> tuple[str, ...]:
        counts = (self.passed, self.skipped, self.failed_locally_too, len(self.known))
        return (
            self.suite,
            self.ground,
            *(str(count) for count in counts),
            str(len(self.unexpected)),
            f"{self.seconds:.0f} s",
        )


_HEAD = ("Suite", "On", "Passed", "Skipped", "Fail locally too", "Known", "UNEXPECTED", "Took")


def compared(
    suite: str, ground: Ground, seconds: float, cases: Iterable[Case], local: dict[str, Case]
) -> Result:
    result = Result(suite, ground.name, seconds)
    for case in cases:
        if case.status == "passed":
            result.passed += 1
            if case.detail:
                result.measured[case.name] = case.detail
        elif case.status == "skipped":
            result.skipped += 1
        elif ground.driver and (case.name in local and local[case.name].status != "passed"):
            result.failed_locally_too += 1
        elif not ground.driver:
            result.failed_locally_too += 1
            result.measured[case.name] = f"failed: {case.detail}"
        elif reason := reason_for(ground.driver, suite, case.name):
            result.known[case.name] = reason
        else:
            result.unexpected[case.name] = case.detail
    return result


def run_suite(suite: Suite, ground: Ground, tools: Path) -> tuple[list[Case], float]:
    directory = ground.directory / suite.name
    directory.mkdir()
    begun = time.monotonic()
    cases = suite.run(directory, tools)
    seconds = time.monotonic() - begun
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        cases.append(Case("what it left can be removed", "failed", str(directory)))
    return cases, seconds


Pair = tuple[str, str]
"""A driver and a policy."""


def run_suites(
    here: World, names: Sequence[str], pairs: Sequence[Pair], *, quick: bool
) -> list[Result]:
    tools = here.work / "tools"
    tools.mkdir()
    results: list[Result] = []
    for name in names:
        suite = SUITES[name]
        # Of the namespace once for each driver.
        firsts = dict(reversed(pairs))
        grounds = [
            here.ground(driver, policy)
            for driver, policy in pairs
            if suite.of_data or firsts[driver] == policy
        ]
        try:
            results += _run_on(here, suite, grounds, tools, quick=quick)
        except NotHereError as error:
            print(f"{name}: not run: {error}", flush=True)
    return results


def _run_on(
    here: World, suite: Suite, grounds: Sequence[Ground], tools: Path, *, quick: bool
) -> Iterator[Result]:
    """The local directory first; `quick`: only when something failed on a mount."""
    local: dict[str, Case] | None = None
    for ground in (here.local, *grounds)[quick:]:
        cases, seconds = run_suite(suite, ground, tools)
        if ground == here.local:
            local = {case.name: case for case in cases}
        elif local is None and any(case.status == "failed" for case in cases):
            local = {case.name: case for case in run_suite(suite, here.local, tools)[0]}
        yield show(compared(suite.name, ground, seconds, cases, local or {}))


def run_programs(here: World, names: Sequence[str], pairs: Sequence[Pair]) -> list[Result]:
    results = []
    for name in names:
        for driver, policy in pairs:
            ground = here.ground(driver, policy)
            begun = time.monotonic()
            try:
                cases = PROGRAMS[name](here, ground)
            except NotHereError as error:
                print(f"{name}: not run: {error}", flush=True)
                continue
            except (OSError, RuntimeError, AssertionError) as error:
                cases = [Case("to its end", "failed", repr(error))]
            seconds = time.monotonic() - begun
            results.append(show(compared(name, ground, seconds, cases, {})))
    return results


def show(result: Result) -> Result:
    """Say how it went as soon as it is known."""
    passed = f"{result.passed} passed, {len(result.unexpected)} unexpected"
    print(f"{result.suite} on {result.ground}: {passed}, {result.seconds:.0f} s", flush=True)
    for name, detail in list(result.unexpected.items())[:20]:
        print(f"   {name}: {detail}", flush=True)
    if result.ground != LOCAL and result.suite not in SUITES:
        for name, detail in result.measured.items():
            print(f"   {name}: {detail}", flush=True)
    return result


def table(results: Sequence[Result]) -> str:
    rows = [_HEAD, *(result.row() for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def chosen(asked: Sequence[str] | None, there: Iterable[str], what: str) -> list[str]:
    names = list(there)
    for name in asked or ():
        if name not in names:
            sys.exit(f"posix: no {what} {name}; there are {', '.join(names)}")
    return list(asked or names)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/posix", description=__doc__)
    parser.add_argument("--driver", action="append", metavar="D", help=", ".join(DRIVERS))
    parser.add_argument("--suite", action="append", metavar="NAME", help="only these")
    parser.add_argument("--policy", action="append", metavar="P", help=", ".join(POLICIES))
    parser.add_argument(
        "--on", action="append", metavar="D-P", help="a driver with a policy: no other pairs"
    )
    parser.add_argument("--programs", action="store_true", help="whole programs, no suites")
    parser.add_argument(
        "--quick", action="store_true", help="on the local directory only what failed on a mount"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="the results as a document")
    parser.add_argument("--keep", action="store_true", help="leave the logs where they are")
    asked = parser.parse_args()
    if asked.suite == ["help"]:
        for suite in SUITES.values():
            print(f"{suite.name:12} {suite.about}")
        print(f"with --programs: {', '.join(PROGRAMS)}")
        return 0
    if os.geteuid() != 0:
        sys.exit("posix: the suites change owners and users: run it as root")
    pairs = list(
        itertools.product(
            chosen(asked.driver, DRIVERS, "driver"), chosen(asked.policy, POLICIES, "policy")
        )
    )
    if asked.on:
        by_name = {"-".join(pair): pair for pair in pairs}
        pairs = [by_name[name] for name in chosen(asked.on, by_name, "driver with a policy")]
    drivers = list(dict(pairs))
    there: Iterable[str] = PROGRAMS if asked.programs else SUITES
    names = chosen(asked.suite, there, "program" if asked.programs else "suite")
    # Also when it is told to end, what it mounted and started does.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with world(drivers, keep=asked.keep) as here:
        if asked.programs:
            results = run_programs(here, names, pairs)
        else:
            results = run_suites(here, names, pairs, quick=asked.quick)
        if not results:
            sys.exit("posix: nothing could be run")
        results += [logged(driver, here.complaints(driver)) for driver in drivers]
        status = report(results, asked.json)
    return status


def logged(driver: str, complaints: Sequence[str]) -> Result:
    """What the mount itself found to be wrong, as one more suite."""
    result = Result("log of the mount", driver, 0.0, passed=int(not complaints))
    result.unexpected = {f"line {number}": line for number, line in enumerate(complaints, 1)}
    return result


def report(results: Sequence[Result], document: Path | None) -> int:
    """Print the table, write the document; the exit status."""
    print(f"\n{table(results)}")
    for result in results:
        for name, reason in result.known.items():
            print(f"known: {result.suite} on {result.ground}: {name}: {reason}")
    unexpected = sum(len(result.unexpected) for result in results)
    if document is not None:
        document.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    print(f"{unexpected} unexpected failures" if unexpected else "nothing unexpected")
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main())
