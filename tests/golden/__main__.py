"""`python -m tests.golden FILE...`: print every error, exit 0, 1 (a miss) or 2 (something could not be checked)."""

from __future__ import annotations

import sys
from pathlib import Path

import jax

from tests.golden.case import Case, Uncheckable
from tests.golden.kinds import runner


def check(path: str | Path) -> int:
    """Check one file and print; returns its exit code."""
    print(f"== {path}")
    case, problems = None, []
    try:
        run = runner(Path(path).name)
        case = Case(path)
        with jax.default_matmul_precision("highest"):
            run(case)
    except Uncheckable as error:
        problems.append(str(error))
    except Exception as error:  # arrays that do not fit together fail inside NumPy, jax or flax
        problems.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    rows = case.rows if case else []
    for row in rows:
        verdict = "ok" if row.ok else "MISS"
        print(f"{verdict:4}  error {row.error:9.2e}  bound {row.bound:9.2e}  {row.name}  {row.note}".rstrip())
    if case and not problems:
        problems = [f"nothing checks '{key}'" for key in case.left_over()]
    if not rows and not problems:
        problems.append("nothing to check")
    for problem in problems:
        print(f"CANNOT CHECK  {problem}")
    misses = sum(not row.ok for row in rows)
    print(f"-- {len(rows)} quantities, {misses} missed, {len(problems)} problems")
    return 2 if problems else 1 if misses else 0


def main(paths: list[str]) -> int:
    if not paths:
        print("usage: python -m tests.golden FILE...", file=sys.stderr)
        return 2
    return max(check(path) for path in paths)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
