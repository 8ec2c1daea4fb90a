"""The command `rheostat`: help at once, everything else by `experiments.commands`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

HELP = """\
usage: rheostat COMMAND ...

  collect TASK        make a dataset: by experts, oracles, weights, runs, or of other datasets
  train ALGO TASK     train an algorithm, on a dataset or by acting
  resume RUN          go on with a run from its last checkpoint
  eval RUN            judge a run on fresh episodes
  data ACTION FILE    describe a dataset of any format, or convert it to ours
  video RUN           an mp4 of the run's policy on fresh episodes
  list WHAT           algos, tasks, datasets or runs
  tables RUNS ...     scores over seeds with intervals, as Markdown, CSV and LaTeX
  plot RUNS ...       learning curves over seeds, as a picture and CSV
  doctor              what works on this machine, and what to do about the rest

Each command explains itself: rheostat COMMAND --help
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 bad input, 128 + n stopped by signal n."""
    args = sys.argv[1:] if argv is None else argv
    if args[:1] == ["--version"]:
        from importlib.metadata import version

        print(f"rheostat {version('rheostat')}")
        return 0
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if args else 2
    return guarded("rheostat", lambda: _run(args))


def _run(args: list[str]) -> None:
    import tyro

    from core.config import choose
    from experiments import commands

    command = choose("command", args[0], commands.COMMANDS)
    if command is commands.train:
        commands.train(args[1:])
    else:
        tyro.cli(command, args=args[1:], prog=f"rheostat {args[0]}")


def guarded(name: str, work: Callable[[], None]) -> int:
    """Do some work; what is expected to go wrong becomes a message and an exit code, as in `main`."""
    from core.config import ConfigError
    from envs.render import RenderError
    from envs.workers import WorkerError
    from experiments.runs import Failed, Stopped

    sys.stdout.reconfigure(errors="replace")  # a terminal without ± still shows the rest
    try:
        work()
        sys.stdout.flush()
        return 0
    except ConfigError as error:
        code, said = 2, error
    except (Failed, RenderError, WorkerError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader has gone, as in `rheostat list tasks | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        code, said = 1, error
    except Stopped as error:
        code, said = error.code, error
    except KeyboardInterrupt:
        code, said = 130, "interrupted"
    print(f"{name}: {said}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
