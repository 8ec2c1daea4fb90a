"""`rheostat doctor`: what works on this machine, and what to do about the rest.

Every check runs in a process of its own, all at once and for a limited time, so that a driver which hangs or crashes
costs one line.  A row fails when a thing that every run needs, or one that a variable asks for, does not work; it
warns when something is absent that only some runs use.

`python -m experiments.doctor` is the same without the command line's own imports; with the name of a check it runs
that one here, and prints its rows as JSON.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
LIMIT = 12.0  # seconds for all checks together
PROBE = 9.0  # seconds for what a check starts itself; less than LIMIT, so that it ends it and can tell
OK, WARN, FAIL = "ok", "warn", "FAIL"


class Row(NamedTuple):
    name: str
    state: str
    said: str
    advice: str = ""  # what to do about it


# --- the checks: each returns its rows ---


def python() -> list[Row]:
    wanted = SpecifierSet(importlib.metadata.metadata("rheostat")["Requires-Python"])
    now = platform.python_version()
    fits = now in wanted
    advice = "" if fits else "make install PYTHON=python3.12 VENV=.venv312"
    return [Row("python", OK if fits else FAIL, f"{now} in {sys.prefix}" + ("" if fits else f", not {wanted}"), advice)]


def packages() -> list[Row]:
    """Every requirement of ours, by the versions that pyproject.toml asks for."""
    needed = [Requirement(text) for text in importlib.metadata.requires("rheostat")]
    needed = [need for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})]
    wrong = [f"{need.name} is {_version(need.name) or 'missing'}, needed: {need.specifier}"
             for need in needed if not _satisfied(need)]  # fmt: skip
    shown = ", ".join(f"{name} {_version(name) or 'missing'}" for name in ("jax", "mujoco", "gymnasium", "metaworld"))
    if not wrong:
        return [Row("packages", OK, f"{shown} and {len(needed) - 4} more, as required")]
    return [Row("packages", FAIL, text, "make install" if text is wrong[-1] else "") for text in wrong]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _satisfied(need: Requirement) -> bool:
    """Whether a requirement is installed, with its extras' own requirements."""
    version = _version(need.name)
    if version is None or not need.specifier.contains(version, prereleases=True):
        return False
    inner = [Requirement(text) for text in importlib.metadata.requires(need.name) or []] if need.extras else []
    chosen = [one for one in inner if one.marker and any(one.marker.evaluate({"extra": e}) for e in need.extras)]
    return all(_version(one.name) for one in chosen if not one.marker.evaluate({"extra": ""}))


def extras() -> list[Row]:
    offered = importlib.metadata.metadata("rheostat").get_all("Provides-Extra")
    needed = [Requirement(text) for text in importlib.metadata.requires("rheostat")]
    there = {
        extra: all(_satisfied(r) for r in needed if r.marker and r.marker.evaluate({"extra": extra}))
        for extra in offered
    }
    has, lacks = ([extra for extra in offered if there[extra] is is_there] for is_there in (True, False))
    adding = f"; make install EXTRAS={','.join([*has, '...'])} adds {', '.join(lacks)}" if lacks else ""
    return [Row("extras", OK, (", ".join(has) or "none") + adding)]


def code() -> list[Row]:
    from experiments.runs import provenance

    made = provenance()
    if made["commit"] is None:
        return [Row("code", OK, f"{ROOT}, no git repository: runs will not know their commit")]
    return [Row("code", OK, f"{ROOT} at {made['commit'][:10]}{', with changes' if made['changed'] else ''}")]


DEVICES = """
import json, jax, jax.numpy as jnp
jax.block_until_ready(jax.jit(lambda x: x @ x)(jnp.ones((8, 8))))
print(json.dumps([jax.default_backend(), [d.device_kind for d in jax.devices()]]))
"""


def devices() -> list[Row]:
    """Where JAX computes, and why not on a GPU that is there."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    # a training run beside this may hold most of the memory
    probe = _start_probe(DEVICES, XLA_PYTHON_CLIENT_PREALLOCATE="false", JAX_TRACEBACK_FILTERING="off")
    gpus, trouble = _nvidia()
    found, said = _end_probe(probe)
    if found is None:
        cuda = ",cuda" * (bool(gpus) or "cuda" in platforms or "gpu" in platforms)
        advice = "unset JAX_PLATFORMS, or " * bool(platforms) + f"make install EXTRAS=dev{cuda}"
        return [Row("devices", FAIL, f"jax {said}", advice)]
    backend, kinds = found
    if backend != "cpu":
        memory = f" ({'; '.join(gpus)})" if gpus else ""
        return [Row("devices", OK, f"{backend}: {len(kinds)} x {kinds[0]}{memory}")]
    here = f"{backend}, {len(kinds)} device{'s' * (len(kinds) > 1)}"
    if not gpus:
        if trouble:
            return [Row("devices", WARN, f"{here}; {trouble}", "if it has a GPU: see to the NVIDIA driver")]
        return [Row("devices", OK, f"{here}; no NVIDIA GPU here")]
    if platforms:
        why, advice = f"JAX_PLATFORMS={platforms} keeps jax from it", "unset JAX_PLATFORMS"
    elif "CUDA_VISIBLE_DEVICES" in os.environ and os.environ["CUDA_VISIBLE_DEVICES"] in ("", "-1"):
        why, advice = "CUDA_VISIBLE_DEVICES hides it", "unset CUDA_VISIBLE_DEVICES"
    elif not any(_version(f"jax-cuda{major}-plugin") for major in (12, 13)):
        why, advice = "jax has no CUDA plugin", "make install EXTRAS=dev,cuda"
    else:
        why, advice = f"jax does not see it: {said or 'no reason given'}", "see to driver and plugin: they must match"
    return [Row("devices", WARN, f"{here}, although there is a GPU ({'; '.join(gpus)}): {why}", advice)]


def _nvidia() -> tuple[list[str], str]:
    """The GPUs by nvidia-smi, and what is wrong with it."""
    if shutil.which("nvidia-smi") is None:
        return [], ""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    code, out, errors = _run(query, PROBE / 2)
    if code == 0:
        return [line.strip() for line in out.splitlines() if line.strip()], ""
    return [], f"nvidia-smi {_reason(code, out + errors)}"


RENDERING = """
import json, time
from envs import render
began = time.perf_counter()
try:
    render.choose_backend()
    import mujoco
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><light pos='0 0 2'/><geom size='.2' rgba='1 0 0 1'/>"
        "<camera name='eye' pos='0 -1 0' xyaxes='1 0 0 0 0 1'/></worldbody></mujoco>")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    picture = render.Studio(model).frame(data, "eye", 32)
    error = "" if picture.std() > 5 else "the picture is empty"
except Exception as failure:
    error = str(failure)
print(json.dumps([time.perf_counter() - began, error]))
"""


def rendering() -> list[Row]:
    """A small picture through each backend."""
    asked = os.environ.get("MUJOCO_GL", "").lower().strip()
    results = {
        backend: _start_probe(RENDERING, MUJOCO_GL=backend) for backend in dict.fromkeys([asked, "egl", "osmesa"])
    }
    results = {backend: _end_probe(process) for backend, process in results.items()}
    errors = {}
    for backend, (found, said) in results.items():
        errors[backend] = said if found is None else found[1]
    works = [backend for backend in ("egl", "osmesa") if not errors[backend]]
    told = "; ".join([
        *(f"{backend} draws in {results[backend][0][0]:.1f} s" for backend in works),
        *(f"no {backend}" for backend in ("egl", "osmesa") if backend not in works),
    ])  # fmt: skip
    if not errors[asked]:
        return [Row("rendering", OK, told + (f"; MUJOCO_GL={asked}" if asked else ""))]
    if asked:
        advice = f"set MUJOCO_GL={works[0]}" if works else f"unset MUJOCO_GL; {errors['egl']}"
        why = errors[asked].partition(": install")[0]
        return [Row("rendering", FAIL, f"MUJOCO_GL={asked} draws nothing: {why}; {told}", advice)]
    return [Row("rendering", WARN, f"{told}: neither pixels nor videos, states only", errors["egl"])]


def ffmpeg() -> list[Row]:
    import imageio_ffmpeg

    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        return [Row("ffmpeg", WARN, f"{error}: no videos", "make install, or set IMAGEIO_FFMPEG_EXE")]
    code, out, errors = _run([program, "-version"], PROBE / 2)
    if code:
        advice = "make install, or unset IMAGEIO_FFMPEG_EXE"
        return [Row("ffmpeg", WARN, f"{program} {_reason(code, out + errors)}: no videos", advice)]
    return [Row("ffmpeg", OK, " ".join(out.split()[2:3]))]


def cache() -> list[Row]:
    """JAX's compilation cache."""
    from core import runtime

    asked = next((name for name in ("JAX_COMPILATION_CACHE_DIR", "RHEOSTAT_CACHE") if os.environ.get(name)), None)
    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or runtime.cache_folder())
    files, size = _contents(folder)
    said = f"{folder}, {files} files, {_bytes(size)}"
    if error := _unwritable(folder):
        said += f", cannot be written ({error}): every start compiles anew"
        return [Row("cache", FAIL if asked else WARN, said, f"set {asked or 'RHEOSTAT_CACHE'} to a folder of yours")]
    return [Row("cache", OK, said)]


def data() -> list[Row]:
    """Where datasets are looked for: $RHEOSTAT_DATA, then ./data."""
    rows, asked = [], os.environ.get("RHEOSTAT_DATA")
    if asked:
        if Path(asked).expanduser().is_dir():
            rows.append(Row("data", OK, f"$RHEOSTAT_DATA is {asked}, {_told(Path(asked).expanduser())}"))
        else:
            advice = f"mkdir -p {asked}, or unset RHEOSTAT_DATA"
            rows.append(Row("data", FAIL, f"$RHEOSTAT_DATA is {asked}, no folder", advice))
    here = Path("data")
    if here.is_dir():
        return [*rows, Row("data", OK, f"{here.absolute()}, {_told(here)}" + "; no $RHEOSTAT_DATA" * (not asked))]
    advice = "" if asked else "rheostat collect TASK makes a dataset"
    return [*rows, Row("data", OK, f"no folder ./data{' and no $RHEOSTAT_DATA' * (not asked)} yet", advice)]


def disk() -> list[Row]:
    from core import runtime

    rows, seen = [], set()
    for what, folder in (("runs", Path("runs")), ("cache", runtime.cache_folder())):
        place = _existing(folder)
        if place.stat().st_dev in seen:
            continue
        seen.add(place.stat().st_dev)
        free = shutil.disk_usage(place).free
        state = OK if free > 5e9 else WARN if free > 5e8 else FAIL
        advice = "" if state == OK else "free some space; checkpoints and datasets take gigabytes"
        rows.append(Row("disk", state, f"{_bytes(free)} free for {what} ({place.absolute()})", advice))
    return rows


def machine() -> list[Row]:
    """Cores that this process may use, and memory, within the limits of its container."""
    from envs.readers.files import memory
    from envs.workers import cores

    quota = _read("/sys/fs/cgroup/cpu.max").split()
    said = f"{cores()} of {os.cpu_count()} cores"
    if len(quota) == 2 and quota[0].isdigit() and int(quota[0]) < cores() * int(quota[1]):
        said += f" for {int(quota[0]) / int(quota[1]):.1f} cores' worth of time"
    total, free = memory()
    state = OK if free > 2e9 else WARN
    advice = "" if state == OK else "end other programs, or use fewer seeds, environments and workers"
    return [Row("machine", state, f"{said}, {_bytes(total)} memory, {_bytes(free)} of it free", advice)]


CHECKS: dict[str, Callable[[], list[Row]]] = {
    check.__name__: check
    for check in (python, packages, extras, code, devices, rendering, ffmpeg, cache, data, disk, machine)
}


# --- helpers ---


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _bytes(count: float) -> str:
    power = min(int(math.log10(max(count, 1))) // 3, 4)
    scaled = count / 1000**power
    return f"{scaled:.{int(power > 0 and scaled < 10)}f} {('B', 'KB', 'MB', 'GB', 'TB')[power]}"


def _contents(folder: Path) -> tuple[int, int]:
    """Files below a folder, and their bytes."""
    sizes = [
        entry.stat().st_size
        for root, _, names in os.walk(folder)
        for entry in (Path(root, name) for name in names)
        if entry.exists()
    ]
    return len(sizes), sum(sizes)


def _told(folder: Path) -> str:
    files, size = _contents(folder)
    return f"{files} files, {_bytes(size)}"


def _existing(folder: Path) -> Path:
    """The nearest folder at or above that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def _unwritable(folder: Path) -> str:
    """Why a folder cannot be made or written to; empty if it can."""
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _reason(code: int, text: str) -> str:
    if code == 124:
        return "did not answer in time"
    last = (text.strip().splitlines() or ["no message"])[-1]
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed: {last[:200]}"


def _start(command: list[str], **variables: str) -> subprocess.Popen:
    surroundings, pipe = {**os.environ, **variables}, subprocess.PIPE
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="replace", env=surroundings
    )


def _end(process: subprocess.Popen, seconds: float) -> tuple[int, str, str]:
    """Exit code (124 when it took too long and was ended), output, errors."""
    try:
        out, errors = process.communicate(timeout=max(seconds, 0.01))
        return process.returncode, out, errors
    except subprocess.TimeoutExpired:
        process.kill()
        return 124, "", ""


def _run(command: list[str], seconds: float) -> tuple[int, str, str]:
    try:
        return _end(_start(command), seconds)
    except OSError as error:
        return 1, "", str(error)


def _python(*arguments: str, **variables: str) -> subprocess.Popen:
    """This Python with our packages, wherever it is started: `-P` keeps the current folder's modules out."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return _start([sys.executable, "-P", *arguments], PYTHONPATH=path, **variables)


def _start_probe(program: str, **variables: str) -> tuple[subprocess.Popen, float]:
    return _python("-c", program, **variables), time.monotonic() + PROBE


def _end_probe(started: tuple[subprocess.Popen, float]):
    """What a program printed as JSON in its last line (None if it failed), and its last complaint."""
    process, deadline = started
    code, out, errors = _end(process, deadline - time.monotonic())
    if code:
        return None, _reason(code, errors)
    return json.loads(out.splitlines()[-1]), (errors.strip().splitlines() or [""])[-1][:200]


# --- all of them ---


def examine(names: Iterable[str] = CHECKS, limit: float = LIMIT) -> Iterable[Row]:
    """The rows of the checks, each in a process of its own, in this order; at most `limit` seconds in all."""
    deadline = time.monotonic() + limit
    started = {name: _python("-m", "experiments.doctor", name) for name in names}
    try:
        yield from _rows(started, deadline)
    finally:
        for process in started.values():
            process.kill()


def _rows(started: dict[str, subprocess.Popen], deadline: float) -> Iterable[Row]:
    for name, process in started.items():
        code, out, errors = _end(process, deadline - time.monotonic())
        if code:
            advice = "try again when the machine is less busy" if code == 124 else "make install"
            yield Row(name, FAIL, f"the check {_reason(code, errors)}", advice)
        else:
            yield from (Row(*row) for row in json.loads(out.splitlines()[-1]))


def doctor() -> None:
    """Print all rows.  Raises: Failed when something needed does not work."""
    failed = []
    for row in examine():
        print(f"{row.state:<6}{row.name:<11}{row.said}", flush=True)
        if row.advice:
            print(f"{'':<17}-> {row.advice}", flush=True)
        failed += [row.name] * (row.state == FAIL)
    if failed:
        from experiments.runs import Failed

        raise Failed(f"not working: {', '.join(dict.fromkeys(failed))}; what to do stands behind the arrows")
    print("All that is needed works.")


def main(arguments: list[str]) -> int:
    if arguments:
        print(json.dumps(CHECKS[arguments[0]]()))
        return 0
    from experiments.cli import guarded

    return guarded("doctor", doctor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
