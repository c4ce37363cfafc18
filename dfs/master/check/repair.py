"""Which fixes a repair makes after a check, before it checks again."""

from collections.abc import Iterable

from dfs.master.check.fixes import AnyFix
from dfs.master.check.problem import Problem


def by_stage(problems: Iterable[Problem]) -> list[dict[AnyFix, Problem]]:
    """The fixes of each stage that is there, the lowest first, and what each is for.

    As soon as those of one stage have changed something, what rests on it is to be looked at anew.
    """
    stages: dict[int, dict[AnyFix, Problem]] = {}
    for problem in problems:
        if problem.fix is not None:
            stages.setdefault(problem.fix.stage, {}).setdefault(problem.fix, problem)
    return [stages[stage] for stage in sorted(stages)]
