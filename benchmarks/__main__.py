"""`python -m benchmarks updates|rollout|online`: measure, print a Markdown table, and write JSON where asked."""

from __future__ import annotations

import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import tyro

from benchmarks.contenders import PeerError
from core import compile_cache
from core.config import ConfigError, choose


def updates(json_out: Path | None = None, rounds: int = 7, quick: bool = False, peers: bool = False) -> None:
    """Speed and memory of training on a dataset.

    Args:
        json_out: write the figures here as well.
        rounds: interleaved repetitions; medians are reported.
        quick: a tenth of the work, to see that it runs.
        peers: d3rlpy beside it, from the environment that `make bench` builds.
    """
    from benchmarks import updates

    _publish(updates.measure(rounds, quick, peers), json_out)


def rollout(json_out: Path | None = None, rounds: int = 7, quick: bool = False, peers: bool = False) -> None:
    """Speed of simulators on the host with a policy in the loop, beside Gymnasium's vectors.

    Args:
        json_out: write the figures here as well.
        rounds: interleaved repetitions; medians are reported.
        quick: a tenth of the work, to see that it runs.
        peers: EnvPool beside it, from the environment that `make bench` builds.
    """
    from benchmarks import rollout

    _publish(rollout.measure(rounds, quick, peers), json_out)


def online(json_out: Path | None = None, rounds: int = 7, quick: bool = False, peers: bool = False) -> None:
    """Speed of learning while acting.

    Args:
        json_out: write the figures here as well.
        rounds: interleaved repetitions; medians are reported.
        quick: a tenth of the work, to see that it runs.
        peers: SBX beside it, from the environment that `make bench` builds.
    """
    from benchmarks import online

    _publish(online.measure(rounds, quick, peers), json_out)


def _publish(rows: list[dict], out: Path | None) -> None:
    import jax

    machine = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processor": _processor(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "command": f"python -m benchmarks {' '.join(sys.argv[1:])}",
    }
    print("  ".join(f"{key}: {value}" for key, value in machine.items()))
    print("| what | value | unit | note |\n| --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row['what']} | {row['value']:.4g} | {row['unit']} | {row['note']} |")
    if out:
        out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


def _processor() -> str:
    import os

    info = Path("/proc/cpuinfo")  # of Linux
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


COMMANDS = {"updates": updates, "rollout": rollout, "online": online}


def main() -> int:
    args = sys.argv[1:]
    try:
        if not args or args[0] in ("-h", "--help"):
            print(f"usage: python -m benchmarks {{{','.join(COMMANDS)}}} [options]")
            return 0
        command = choose("benchmark", args[0], COMMANDS)
        compile_cache.enable()
        tyro.cli(command, args=args[1:], prog=f"python -m benchmarks {args[0]}")
        return 0
    except (ConfigError, PeerError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


if __name__ == "__main__":
    sys.exit(main())
