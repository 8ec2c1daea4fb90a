"""`rheostat doctor`, with things broken on purpose."""

import errno
import importlib.metadata
import os
import time

import pytest

from experiments import doctor
from experiments.cli import main
from experiments.doctor import FAIL, OK, WARN


def one(rows):
    (row,) = rows
    return row


def program(folder, name, text):
    """A script that stands in for a program, first on the PATH."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


def test_the_whole_of_it_with_three_things_broken(tmp_path, monkeypatch, capsys):
    """In any folder, in time, with a row for each check."""
    (tmp_path / "file").touch()
    (tmp_path / "experiments").mkdir()  # another package of that name in the current folder is not ours
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    monkeypatch.setenv("RHEOSTAT_CACHE", str(tmp_path / "file"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("RHEOSTAT_DATA", str(tmp_path / "none"))
    began = time.monotonic()
    assert main(["doctor"]) == 1
    assert time.monotonic() - began < 15
    said = capsys.readouterr()
    assert "not working: rendering, cache, data" in said.err
    assert {line.split()[1] for line in said.out.splitlines() if line[:1] != " "} == set(doctor.CHECKS)
    assert f"mkdir -p {tmp_path}/none" in said.out
    assert max(map(len, said.out.splitlines())) < 250


def test_what_hangs_or_crashes_costs_a_line(monkeypatch, path):
    assert [row.state for row in doctor.examine(["machine", "data"])] == [OK] * 2
    rows = list(doctor.examine(["machine", "data"], limit=0))
    assert [(row.name, row.state) for row in rows] == [("machine", FAIL), ("data", FAIL)]
    assert "did not answer in time" in rows[0].said
    row = one(doctor.examine(["nothing"]))
    assert (row.state, "KeyError: 'nothing'" in row.said) == (FAIL, True)
    monkeypatch.setattr(doctor, "PROBE", 2.0)
    program(path, "nvidia-smi", "sleep 30")
    began = time.monotonic()
    assert doctor._nvidia() == ([], "nvidia-smi did not answer in time")
    assert time.monotonic() - began < 5


def test_versions_are_those_of_the_project(monkeypatch):
    assert one(doctor.python()).state == OK
    row = one(doctor.packages())
    assert (row.state, "mujoco 3.3.0" in row.said) == (OK, True)
    version = importlib.metadata.version

    def broken(name):
        if name == "ogbench":
            raise importlib.metadata.PackageNotFoundError(name)
        return "3.16.0" if name == "mujoco" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", broken)
    rows = doctor.packages()
    assert [row.said for row in rows] == ["mujoco is 3.16.0, needed: ==3.3.0", "ogbench is missing, needed: ==1.2.2"]
    assert (rows[0].state, rows[-1].advice) == (FAIL, "make install")


def test_extras_are_those_that_are_installed(monkeypatch):
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version("jax" if name == "submitit" else name))
    monkeypatch.setattr(doctor, "_satisfied", lambda need: need.name == "submitit")
    row = one(doctor.extras())
    assert (row.state, row.said.partition(";")[0]) == (OK, "slurm")
    assert "adds cuda, dev, mjx, tensorboard, wandb" in row.said


def test_an_extra_needs_what_it_asks_of_others():
    """`cuda` is jax[cuda12]: jax alone is not enough."""
    assert doctor._satisfied(doctor.Requirement("jax[cuda12]")) == bool(doctor._version("jax-cuda12-plugin"))
    assert doctor._satisfied(doctor.Requirement("jax"))
    assert not doctor._satisfied(doctor.Requirement("jax<0.1"))


GPU = "NVIDIA H100, 81559 MiB, 550.1"


@pytest.mark.parametrize(
    ("found", "variables", "plugin", "state", "said", "advice"),
    [
        ((["cpu", ["cpu"]], ""), {}, None, WARN, "no CUDA plugin", "make install EXTRAS=dev,cuda"),
        ((["cpu", ["cpu"]], "driver too old"), {}, "0.10.2", WARN, "driver too old", "must match"),
        ((["cpu", ["cpu"]], ""), {"JAX_PLATFORMS": "cpu"}, "0.10.2", WARN, "JAX_PLATFORMS=cpu", "unset JAX_PLATFORMS"),
        ((["cpu", ["cpu"]], ""), {"CUDA_VISIBLE_DEVICES": ""}, "0.10.2", WARN, "hides it", "unset CUDA_VISIBLE"),
        ((["gpu", ["H100"]], ""), {}, "0.10.2", OK, f"1 x H100 ({GPU})", ""),
        ((None, "failed: no cuda"), {"JAX_PLATFORMS": "cuda"}, None, FAIL, "jax failed: no cuda", "EXTRAS=dev,cuda"),
    ],
)
def test_why_a_gpu_is_not_used(path, monkeypatch, found, variables, plugin, state, said, advice):
    program(path, "nvidia-smi", f"echo '{GPU}'")
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor, "_start_probe", lambda *_, **__: None)
    monkeypatch.setattr(doctor, "_end_probe", lambda _: found)
    monkeypatch.setattr(doctor, "_version", lambda name: plugin)
    row = one(doctor.devices())
    assert row.state == state
    assert said in row.said
    assert advice in row.advice


def test_jax_on_a_platform_that_is_not_there(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    row = one(doctor.devices())
    assert (row.state, "nonsense" in row.said) == (FAIL, True)
    assert row.advice.startswith("unset JAX_PLATFORMS")


def test_without_a_renderer_only_pictures_are_lost(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(doctor, "_start_probe", lambda *_, **variables: variables["MUJOCO_GL"])
    results = {
        "": [0.1, "no OpenGL backend: install EGL"],
        "egl": [0.1, "no libEGL: install EGL"],
        "osmesa": [0.1, "no libOSMesa: install EGL"],
    }
    monkeypatch.setattr(doctor, "_end_probe", lambda backend: (results[backend], ""))
    row = one(doctor.rendering())
    assert (row.state, row.advice) == (WARN, "no libEGL: install EGL")
    results["osmesa"] = [0.1, ""]
    monkeypatch.setenv("MUJOCO_GL", "egl")
    row = one(doctor.rendering())
    assert (row.state, row.advice) == (FAIL, "set MUJOCO_GL=osmesa")
    assert "MUJOCO_GL=egl draws nothing: no libEGL; osmesa draws in 0.1 s; no egl" in row.said
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert one(doctor.rendering()).state == OK


def test_ffmpeg(path, monkeypatch):
    assert one(doctor.ffmpeg()).state == OK
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program(path, "broken", "echo no codec; exit 3")))
    row = one(doctor.ffmpeg())
    assert (row.state, "failed: no codec" in row.said) == (WARN, True)


def test_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RHEOSTAT_DATA", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    assert "rheostat collect" in one(doctor.data()).advice
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "a.npz").write_bytes(bytes(1500))
    assert "1 files, 1.5 KB; no $RHEOSTAT_DATA" in one(doctor.data()).said
    monkeypatch.setenv("RHEOSTAT_CACHE", str(tmp_path / "cache"))
    assert one(doctor.cache()).state == OK

    def refused(dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refused)
    row = one(doctor.cache())
    assert (row.state, "Read-only file system" in row.said) == (FAIL, True)
    monkeypatch.delenv("RHEOSTAT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    row = one(doctor.cache())
    assert (row.state, row.advice) == (WARN, "set RHEOSTAT_CACHE to a folder of yours")


def test_little_space(monkeypatch):
    used = type(doctor.shutil.disk_usage("/"))
    for free, state in ((1e8, FAIL), (1e9, WARN), (1e12, OK)):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _, free=free: used(2e12, 1e12, free))
        assert {row.state for row in doctor.disk()} == {state}


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 KB"), (76e6, "76 MB"), (2.5e13, "25 TB")]
)
def test_bytes(count, text):
    assert doctor._bytes(count) == text
