"""Runs that start from others: what they take over, that they stand alone afterwards, and what is refused."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import algos
from core import loop, sampling
from core.checkpoint import Checkpoints
from core.config import ConfigError
from core.types import EnvSpec
from envs import toys
from experiments import options, parents, results, runs
from experiments.cli import main
from experiments.evaluate import checkpoint
from experiments.job import Job
from experiments.train import train
from tests.experiments.test_runs import final, untimed

EVERY = [
    "--epoch", "32", "--save-every", "32", "--eval.every", "32", "--eval.episodes", "2", "--eval.envs", "2",
]  # fmt: skip
TINY = [*EVERY, "--config.batch-size", "16"]
ONLINE = ["--online.envs", "4", "--online.length", "2", "--online.utd", "0.5", "--online.replay", "200"]


@pytest.fixture(autouse=True)
def staged(monkeypatch):
    monkeypatch.setitem(algos.NAMES, "staged", "tests.experiments.staged")


def command(algo, out, *more, steps=64, task="toy/match", name="run"):
    words = ["train", algo, task, "--out", out, "--name", name, "--steps", steps, *TINY, *more]
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def cloned(match_file, tmp_path_factory):
    """A run of two seeds to start from."""
    out = tmp_path_factory.mktemp("cloned")
    shape = ("--config.hidden", "8", "--config.exploration", "0.2", "--env.max-steps", "9")
    assert main(command("bc", out, "--data.path", match_file, "--seeds", "3", "5", *shape)) == 0
    return out / "bc" / "toy/match" / "run"


@pytest.fixture(scope="module")
def one(cloned, match_file, tmp_path_factory):
    """The same of one seed."""
    out = tmp_path_factory.mktemp("one")
    assert main(command("bc", out, "--data.path", match_file, "--config.hidden", "8")) == 0
    return out / "bc" / "toy/match" / "run"


def stage(out, parent, *more, online=True, **chosen):
    start = ("--from", parent) if parent else ()
    assert main(command("staged", out, *start, *(ONLINE if online else ()), *more, **chosen)) == 0
    return out / "staged" / "toy/match" / chosen.get("name", "run")


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_takes_over_policy_options_and_environment(cloned, tmp_path, capsys):
    folder = stage(tmp_path, cloned, "--seeds", "0", "1")
    assert f"starts from {cloned}, bc on toy/match, at step 64\n" in capsys.readouterr().out
    chosen = runs.load(folder).train
    assert (chosen.config.hidden, chosen.config.exploration, chosen.env.max_steps) == ((8,), 0.2, 9)
    assert chosen.config.state_norm == "none"
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["parent"] == {
        "run": str(cloned),
        "algo": "bc",
        "step": 64,
        "identity": runs.identity(runs.load(cloned)),
    }
    ended, state = checkpoint(cloned)[2].algo, checkpoint(folder)[2].algo
    same(state.parent, ended)  # seed by seed
    assert (state.policy.step == 64 + 32).all()  # it went on: an update for every other step
    assert main(["list", "runs", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{folder}  done  64/64  from {cloned} at 64\n"


def test_a_run_of_one_seed_serves_all(one, tmp_path):
    folder = stage(tmp_path, one, "--seeds", "0", "1", "2", steps=32)
    ended, state = checkpoint(one)[2].algo, checkpoint(folder)[2].algo
    for i in range(3):
        same(jax.tree.map(lambda x, i=i: x[i], state.parent), jax.tree.map(lambda x: x[0], ended))
    kernels = jax.tree.leaves(state.policy.actor.params)
    assert all(np.abs(k[0] - k[1]).max() > 0 for k in kernels)


def test_a_dataset_can_be_given_too(one, match_file, tmp_path):
    folder = stage(tmp_path, one, "--data.path", match_file, online=False)
    state = checkpoint(folder)[2].algo
    same(state.parent, checkpoint(one)[2].algo)
    assert state.policy.step == 128


def test_resumed_without_its_parent_equals_never_stopped(one, match_file, tmp_path):
    """Three stages; what the first two left is deleted, the third is moved, judged and resumed."""
    first, seeds = tmp_path / "first", ("--seeds", "0", "1")
    shutil.copytree(one, first)
    second = stage(tmp_path / "second", first, steps=32)
    straight = stage(tmp_path / "straight", second, *seeds)
    folder = stage(tmp_path / "third", second, *seeds, steps=32)
    assert runs.find(tmp_path / "third") == [folder]
    assert sorted(p.name for p in (folder / "parent").iterdir()) == ["ckpt", "config.json", "meta.json", "parent"]
    assert [p.name for p in (folder / "parent" / "ckpt").iterdir()] == ["000000032"]
    shutil.rmtree(first)
    shutil.rmtree(second)
    moved = Path(shutil.move(folder, tmp_path / "moved"))
    assert main(["eval", str(moved), "--episodes", "2", "--envs", "2"]) == 0
    assert main(["resume", str(moved), "--steps", "64"]) == 0
    assert final(moved)["digest"] == final(straight)["digest"]
    assert untimed(moved, "eval.jsonl") == untimed(straight, "eval.jsonl")
    state = checkpoint(moved)[2].algo
    assert isinstance(state.parent.parent, type(checkpoint(straight)[2].algo.parent.parent))


def test_a_run_that_stopped_before_its_first_checkpoint_begins_anew_from_its_parent(one, tmp_path, monkeypatch):
    straight = stage(tmp_path, one, name="straight")
    first = tmp_path / "first"
    shutil.copytree(one, first)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", full)
        assert main(command("staged", tmp_path, "--from", first, *ONLINE)) == 1
    with monkeypatch.context() as patch:  # nor could its parent be copied
        patch.setattr(parents.shutil, "copytree", full)
        assert main(command("staged", tmp_path, "--from", first, *ONLINE, name="other")) == 1
    folder, other = tmp_path / "staged" / "toy/match" / "run", tmp_path / "staged" / "toy/match" / "other"
    assert main(["resume", str(other)]) == 0  # the parent is still there
    shutil.rmtree(first)
    assert main(["resume", str(folder)]) == 0
    for run in (folder, other):
        assert (run / "parent" / "config.json").exists()
        assert final(run)["digest"] == final(straight)["digest"]


def test_another_parent_makes_another_run(cloned, one, tmp_path):
    """So does a later step of it; where it lies does not."""
    other = tmp_path / "other"
    shutil.copytree(one, other)
    made = [
        stage(tmp_path / "a", one, steps=32),
        stage(tmp_path / "b", other, "--seeds", "1", steps=32),
        stage(tmp_path / "c", None, "--config.hidden", "8", steps=32),
    ]
    assert main(["resume", str(other), "--steps", "96"]) == 0
    made.append(stage(tmp_path / "d", other, "--seeds", "2", steps=32))
    groups = [[run.folder for run in group.members] for group in results.groups(made)]
    assert sorted(groups) == sorted([made[:2], [made[2]], [made[3]]])
    assert len({runs.identity(runs.load(folder)) for folder in made}) == 4


def test_runs_without_parent_are_called_as_before():
    """The fingerprint of a run that an earlier version began."""
    chosen = options.Train(algos.load("bc").Config(lr=1e-3), seeds=(0, 1))
    known = "2e8243fce0d78ce0c368650a416b3808766e6010f05f9b57855ec518293b191a"
    assert options.identity("bc", "toy/match", chosen, "0" * 64) == known


@pytest.mark.parametrize(
    ("algo", "more", "said"),
    [
        ("td3_bc", (), "td3_bc starts from no other run"),
        ("staged", ("--config.hidden", "16"), "come --config.hidden (8,): leave config.hidden as they are"),
        ("staged", ("--seeds", "1", "2", "3"), "give --seeds 3 5, or start from a run of one seed"),
        ("staged", ("--env.history", "2"), "obs_shape (4,), not (2,); history 2, not 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(algo, more, said, cloned, tmp_path, capsys):
    assert main(command(algo, tmp_path, "--from", cloned, *ONLINE, *more)) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_task_needs_the_same_shapes(one, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(toys.TOYS, "twin", toys.TOYS["match"])
    assert main(command("staged", tmp_path, "--from", one, *ONLINE, task="toy/twin", steps=32)) == 0
    assert f"starts from {one}, bc on toy/match," in capsys.readouterr().out
    assert main(["resume", str(tmp_path / "staged" / "toy/twin" / "run"), "--steps", "64"]) == 0
    assert main(command("staged", tmp_path, "--from", one, *ONLINE, task="toy/value")) == 2
    said = capsys.readouterr().err
    assert f"{one} acts in toy/match; toy/value with these --env options has action_dim 1, not 2" in said


def test_what_cannot_be_started_from_says_why(cloned, one, tmp_path, capsys, monkeypatch):
    def refused(folder, *more, algo="staged"):
        assert main(command(algo, tmp_path / "out", f"--from={folder}", *ONLINE, *more)) == 2
        return capsys.readouterr().err

    assert "not a run folder" in refused(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    shutil.copytree(one, empty, ignore=shutil.ignore_patterns("ckpt"))
    assert f"{empty} (state: done) has no checkpoint to start from" in refused(empty)
    monkeypatch.setattr("tests.experiments.staged.PARENTS", ("sac", "td3_bc"))
    assert f"staged starts from runs of sac or td3_bc only; {one} is one of bc" in refused(one)


def test_a_failed_seed_is_not_started_from(one, match_file, tmp_path, monkeypatch, capsys):
    begin = loop.begin

    def poisoned(algorithm, start, seeds):
        run = begin(algorithm, start, seeds)
        params = jax.tree.map(lambda x: x.at[1].set(jax.numpy.nan), run.algo.actor.params)
        return run._replace(algo=run.algo._replace(actor=run.algo.actor._replace(params=params)))

    with monkeypatch.context() as patch:
        patch.setattr(loop, "begin", poisoned)
        words = command("bc", tmp_path, "--data.path", match_file, "--config.hidden", "8", "--seeds", "0", "1")
        assert main(words) == 0
    folder = tmp_path / "bc" / "toy/match" / "run"
    assert main(command("staged", tmp_path, "--from", folder, *ONLINE, "--seeds", "0", "1")) == 2
    assert f"seeds [1] of {folder} have failed" in capsys.readouterr().err


def test_a_parent_that_is_gone_is_asked_for(one, tmp_path, capsys):
    first = tmp_path / "first"
    shutil.copytree(one, first)
    folder = stage(tmp_path, first, steps=32)
    shutil.rmtree(folder / "parent")
    assert main(["eval", str(folder), "--episodes", "2", "--envs", "2"]) == 0  # where it lay
    shutil.rmtree(first)
    capsys.readouterr()
    assert main(["resume", str(folder), "--steps", "64"]) == 2
    assert f"needs {folder / 'parent'}, which is gone; restore it" in capsys.readouterr().err


def test_by_python_the_parents_options_are_asked_for(one, tmp_path):
    chosen = options.Train(algos.load("staged").Config(), parent=str(one), out=str(tmp_path))
    with pytest.raises(ConfigError, match=r"come --config.hidden \(8,\)"):
        train("staged", "toy/match", chosen)


@pytest.mark.parametrize(("first", "tables"), [(0, 0), (1, 1)])
def test_where_all_transitions_may_be_drawn_no_table_is_made(first, tables, match_file, monkeypatch):
    bc, made = algos.load("bc"), []
    algorithm = bc.make(bc.Config(), EnvSpec("toy/match", (2,), 2))
    eligible = lambda data: np.arange(len(data.row)) >= first  # noqa: E731
    monkeypatch.setattr(bc, "make", lambda cfg, spec: algorithm._replace(eligible=eligible))
    monkeypatch.setattr(sampling, "alias_table", lambda weight: made.append(weight))
    chosen = options.Train(bc.Config(), data=options.DataOptions(match_file))
    Job(runs.Run(None, "bc", "toy/match", chosen)).prepare()
    assert len(made) == tables


def test_a_chain_is_cloned_then_tuned(match_file, tmp_path, capsys):
    """The real thing: a flow policy of chunks, from a dataset, then by acting; judged and played by itself."""

    def trained(algo, name, *more, steps):
        assert main(command(algo, tmp_path, *more, name=name, steps=steps)) == 0
        return tmp_path / algo / "toy/match" / name

    net = ("--config.net.hidden", "8", "--config.denoising.steps", "2", "--env.chunk", "2")
    cloned = trained("chain_bc", "run", "--data.path", match_file, *net, steps=32)
    tune = ["--from", cloned, "--online.envs", "4", "--online.length", "4", "--config.denoising.steps", "2",
            "--config.critic.hidden", "8", "--config.epochs", "2", "--config.noise-input", "step"]  # fmt: skip
    straight = trained("reinflow", "straight", *tune, steps=64)
    folder = trained("reinflow", "run", *tune, steps=32)
    chosen = runs.load(folder).train
    assert (chosen.config.net, chosen.env.chunk) == (runs.load(cloned).train.config.net, 2)
    same(checkpoint(folder)[2].algo.norm, checkpoint(cloned)[2].algo.norm)
    assert main(command("reinflow", tmp_path, *tune, "--env.chunk", "5", name="other")) == 2
    assert "has chunk 5, not 2" in capsys.readouterr().err
    assert main(command("reinflow", tmp_path, *tune, "--config.net.time-dim", "8", name="other")) == 2
    assert "come --config.net.time-dim 16" in capsys.readouterr().err

    fewer = ("--denoising-steps", "1", "--episodes", "2", "--envs", "2")
    assert main(["eval", str(cloned), *fewer]) == 0
    assert json.loads((cloned / "eval_fresh.jsonl").read_text())["denoising_steps"] == 1
    assert main(["eval", str(folder), *fewer]) == 2  # the noise of each step is in a table
    assert "of its own steps only" in capsys.readouterr().err

    shutil.rmtree(cloned)
    assert main(["resume", str(folder), "--steps", "64"]) == 0
    assert final(folder)["digest"] == final(straight)["digest"]
    assert main(["eval", str(folder), "--episodes", "2", "--envs", "2"]) == 0
    out = tmp_path / "played.npz"
    assert main(["collect", "--run", str(folder), "--episodes", "2", "--workers", "1", "--out", str(out)]) == 0
