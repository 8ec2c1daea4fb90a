"""`rheostat data` and the list of datasets, through the command line."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from envs import datasets
from experiments import data as cards
from experiments.cli import main
from tests.envs import foreign


def test_describe_shows_the_card_of_every_format(tmp_path, match_file, capsys):
    foreign.hdf5(tmp_path / "hopper_medium-v2.hdf5", foreign.flat("...T...L..", 11, 3))
    foreign.minari(tmp_path / "main_data.hdf5")
    foreign.npz(tmp_path / "pointmaze-medium-navigate-v0.npz", foreign.ogbench(state_dim=2))
    foreign.npz(tmp_path / "train.npz", foreign.dppo())
    expected = {
        "hopper_medium-v2.hdf5": ("D4RL", "mujoco/hopper-v4", "8 transitions in 3 episodes", "normalised score 0."),
        "main_data.hdf5": ("Minari", "unknown", "7 transitions in 2 episodes", "1 episode by the end of the task"),
        "pointmaze-medium-navigate-v0.npz": ("OGBench", "ogbench/pointmaze-medium", "goal-conditioned data"),
        "train.npz": ("DPPO", "unknown", "normalization.npz beside it would undo its scaling"),
        match_file: ("rheostat 1", "toy/match", "400 transitions in 40 episodes"),
    }
    for name, words in expected.items():
        assert main(["data", "describe", str(tmp_path / name)]) == 0
        said = capsys.readouterr().out
        for word in (*words, "sha256", "median", "action "):
            assert word in said, f"{name}: {word} not in\n{said}"


def test_measures_are_described(tmp_path, match_file, arrays, capsys):
    """Also of a card that was written before there were any; TQ where the task has constants only."""
    hopper = foreign.hdf5(tmp_path / "hopper_medium-v2.hdf5", foreign.flat("...T...L..", 11, 3))
    assert main(["data", "describe", str(hopper)]) == 0
    said = capsys.readouterr().out
    assert "  measures  TQ 0.00" in said
    assert "(0: -20.3, 1: 3,234.3, Farama-Foundation/D4RL d4rl/infos.py), PSV " in said
    old = tmp_path / "old.npz"
    found, card = datasets.load(match_file)
    del card["measures"]
    np.savez(old, card=np.array(json.dumps(card)), **found)
    assert main(["data", "describe", str(old)]) == 0
    said = capsys.readouterr().out
    assert "  measures  PSV 0." in said
    assert "400 unique pairs, 1 of the transitions" in said
    assert "TQ" not in said


def test_coverage_of_a_reference(tmp_path, match_file, arrays, capsys):
    half = tmp_path / "half.npz"
    fewer = {key: value[: len(value) // 2] for key, value in arrays.items()}
    card = datasets.write(half, fewer, {"task": "toy/match"})
    assert main(["data", "describe", match_file, "--reference", str(half)]) == 0
    said = capsys.readouterr().out
    assert f"SACo 2 of {half}, sha256 {card['sha256'][:16]}..." in said
    other = foreign.hdf5(tmp_path / "hopper_medium-v2.hdf5", foreign.flat("...T...L..", 11, 3))
    assert main(["data", "describe", match_file, "--reference", str(other)]) == 2
    assert "was made on mujoco/hopper-v4, not on toy/match" in capsys.readouterr().err


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
        (["convert", "no.hdf5", "--out", "x.npz", "--reference", "y.npz"], "--reference is for describe"),
        (["describe", "no.hdf5", "--task", "mujoco/hoper-v5"], "unknown task"),
        (["describe", "no.hdf5", "--max-steps", "0"], "must be at least 2"),
        (["convert", "no.hdf5", "--out", "x.hdf5"], "x.hdf5 does not end in .npz; choose another --out"),
        (["convert", "no.hdf5", "--out", f"{__file__}/a/x.npz"], "test_data.py is a file, not a folder; choose"),
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


@pytest.mark.parametrize(
    ("name", "data", "task", "message"),
    [
        (
            "set.npz",
            foreign.flat("..T.L.", 11, 3),
            "mujoco/halfcheetah-v5",
            "of shape (11,), but mujoco/halfcheetah-v5",
        ),
        ("set.npz", foreign.flat("..T.L.", 11, 2), "mujoco/hopper-v5", "'action': rows of shape (2,)"),
        ("set.npz", {**foreign.flat("..T.L.", 11), "actions": np.arange(6)}, "mujoco/hopper-v5", "rows of shape ()"),
        (
            "set.npz",
            foreign.ogbench(state_dim=4),
            "ogbench/pointmaze-medium",
            "shape (4,), but ogbench/pointmaze-medium",
        ),
        (
            "pointmaze-medium-navigate-v0.npz",
            foreign.ogbench(state_dim=4),
            None,
            "says that it is from ogbench/pointmaze",
        ),
    ],
)
def test_shapes_must_be_those_of_the_task(tmp_path, capsys, name, data, task, message):
    path, out = foreign.npz(tmp_path / name, data), tmp_path / "ours.npz"
    said = ["--task", task] if task else []
    for words in (["convert", str(path), "--out", str(out)], ["describe", str(path)]):
        assert main(["data", *words, *said]) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_task_that_is_said_is_on_the_card(tmp_path, capsys):
    """With its score, and without the note that nothing says it; for a file of ours that does not say it, too."""
    path, out = foreign.npz(tmp_path / "set.npz", foreign.flat("...T...L..", 11, 3)), tmp_path / "ours.npz"
    assert main(["data", "convert", str(path), "--out", str(out)]) == 0
    assert "which task" not in capsys.readouterr().out
    assert main(["data", "describe", str(path)]) == 0
    assert "which task" in capsys.readouterr().out
    for file in (path, out):
        assert main(["data", "describe", str(file), "--task", "mujoco/hopper-v5"]) == 0
        said = capsys.readouterr().out
        assert "task      mujoco/hopper-v5" in said
        assert "normalised score" in said
        assert "which task" not in said


def test_where_nothing_can_be_written(tmp_path, match_file, capsys):
    assert main(["data", "convert", match_file, "--out", "/proc/x.npz"]) == 2
    said = capsys.readouterr().err
    assert "/proc takes no files: choose another --out" in said
    assert "Errno" not in said
    assert main(["data", "convert", match_file, "--out", match_file]) == 2
    assert "exists; choose another --out, or delete it" in capsys.readouterr().err


def test_folders_are_no_datasets(tmp_path, capsys):
    (tmp_path / "set.npz.parts").mkdir()
    for folder, message in ((tmp_path, "is a folder without"), (tmp_path / "set.npz.parts", "unfinished collection")):
        assert main(["data", "describe", str(folder)]) == 2
        assert message in capsys.readouterr().err


def test_cards_say_nothing_empty(arrays):
    recipe = {"task": "toy/match", "kind": "", "episodes": 0, "noise": 0.0, "max_steps": 0, "transitions": 100}
    made = {"recipe": recipe, "players": [{"source": "", "layers": [[3, 11]]}], "commit": "abc", "changed": False}
    card = {"format": "rheostat 1", "task": "toy/match", "sha256": "0", **made, **datasets.describe(arrays)}
    said = cards.text("set", {**card, "episodes": 1, "terminated": 1})
    assert "recipe    task toy/match, noise 0, transitions 100\n" in said
    assert "player    layers 3x11" in said
    assert "commit    abc\n" in said
    assert "changed" not in said
    assert "in 1 episode\n" in said
    assert "1 episode by the end" in said
    assert "commit    abc, with changes" in cards.text("set", {**card, "changed": True})
