"""`rheostat data` and the list of datasets, through the command line."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from envs import datasets
from experiments.cli import main
from tests.envs import foreign


def test_describe_shows_the_card_of_every_format(tmp_path, match_file, capsys):
    foreign.hdf5(tmp_path / "hopper_medium-v2.hdf5", foreign.flat("...T...L..", 11, 3))
    foreign.minari(tmp_path / "main_data.hdf5")
    foreign.npz(tmp_path / "pointmaze-medium-navigate-v0.npz", foreign.ogbench())
    foreign.npz(tmp_path / "train.npz", foreign.dppo())
    expected = {
        "hopper_medium-v2.hdf5": ("D4RL", "mujoco/hopper-v4", "8 transitions in 3 episodes", "normalised score 0."),
        "main_data.hdf5": ("Minari", "unknown", "7 transitions in 2 episodes", "1 episodes end their task"),
        "pointmaze-medium-navigate-v0.npz": ("OGBench", "ogbench/pointmaze-medium", "goal-conditioned data"),
        "train.npz": ("DPPO", "unknown", "normalization.npz beside it would undo its scaling"),
        match_file: ("rheostat 1", "toy/match", "400 transitions in 40 episodes"),
    }
    for name, words in expected.items():
        assert main(["data", "describe", str(tmp_path / name)]) == 0
        said = capsys.readouterr().out
        for word in (*words, "sha256", "median", "action "):
            assert word in said, f"{name}: {word} not in\n{said}"


def test_convert_writes_our_format(tmp_path, capsys):
    path, out = foreign.hdf5(tmp_path / "set.hdf5", foreign.flat("...T...L..", 11, 3)), tmp_path / "ours.npz"
    assert main(["data", "convert", str(path), "--out", str(out), "--task", "mujoco/hopper-v5"]) == 0
    assert "converted from" in capsys.readouterr().out
    arrays, card = datasets.load(out)
    for key, values in datasets.load(path)[0].items():
        np.testing.assert_array_equal(arrays[key], values)
    assert card["task"] == "mujoco/hopper-v5"
    assert card["converted from"]["format"] == "D4RL"
    assert card["converted from"]["sha256"] == card["sha256"]
    assert main(["data", "convert", str(path), "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err


def test_max_steps_for_files_that_do_not_say(tmp_path, capsys):
    data = foreign.flat("..........")
    del data["timeouts"]
    path = str(foreign.hdf5(tmp_path / "set.hdf5", data))
    assert main(["data", "describe", path]) == 2
    assert "--max-steps" in capsys.readouterr().err
    assert main(["data", "describe", path, "--max-steps", "5"]) == 0
    assert "8 transitions in 2 episodes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["describe", "no.hdf5"], "no.hdf5: no such dataset"),
        (["convert", "no.hdf5"], "convert needs --out"),
        (["describe", "no.hdf5", "--out", "x.npz"], "describe takes none"),
        (["describe", "no.hdf5", "--task", "mujoco/hoper-v5"], "unknown task"),
        (["describe", "no.hdf5", "--max-steps", "0"], "must be at least 2"),
        (["convert", "no.hdf5", "--out", "x.hdf5"], "does not end in .npz"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_converting_to_another_task_is_refused(tmp_path, capsys):
    path = foreign.hdf5(tmp_path / "hopper_medium-v2.hdf5", foreign.flat("...T...L..", 11, 3))
    words = ["data", "convert", str(path), "--out", str(tmp_path / "x.npz"), "--task", "mujoco/hopper-v5"]
    assert main(words) == 2
    assert "was made on mujoco/hopper-v4, not on mujoco/hopper-v5" in capsys.readouterr().err


def test_list_datasets_reads_no_array(tmp_path, match_file, capsys, monkeypatch):
    folder = tmp_path / "data"
    (folder / "d4rl").mkdir(parents=True)
    shutil.copy(match_file, folder / "ours.npz")
    foreign.hdf5(folder / "d4rl/hopper-medium-v2.hdf5", foreign.flat("...T...L..", 11, 3))
    foreign.minari(folder / "main_data.hdf5")
    foreign.npz(folder / "train.npz", foreign.dppo())
    np.savez(folder / "normalization.npz", obs_min=np.zeros(3))
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    (folder / "begun.npz.parts").mkdir()
    np.savez(folder / "begun.npz.parts/000000.npz", state=np.zeros(3))
    monkeypatch.setenv("RHEOSTAT_DATA", str(folder))
    monkeypatch.chdir(tmp_path)
    assert main(["list", "datasets"]) == 0
    lines = [line.removeprefix(f"{folder}/") for line in capsys.readouterr().out.splitlines() if str(folder) in line]
    assert [line.split("  ")[:3] for line in lines if "broken" not in line] == [
        ["d4rl/hopper-medium-v2.hdf5", "D4RL", "10 rows of 11"],
        ["main_data.hdf5", "Minari", "2 episodes"],
        ["ours.npz", "toy/match", "40 episodes"],
        ["train.npz", "DPPO", "7 rows of 3"],
    ]
    assert any("broken.npz  no dataset (cannot be read" in line for line in lines)


def test_looking_at_data_imports_no_jax(match_file):
    program = (
        "import sys; from experiments.cli import main; "
        "code = main(['data', 'describe', sys.argv[1]]) or main(['list', 'datasets', '--root', sys.argv[2]]); "
        "sys.exit(3 if 'jax' in sys.modules else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, match_file, "/nowhere"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
