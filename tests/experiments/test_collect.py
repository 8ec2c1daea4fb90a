"""`rheostat collect` from runs, weights and mixtures, and what it refuses."""

import hashlib

import jax
import numpy as np
import pytest

import envs
from core.config import ConfigError
from core.seeds import derive
from envs import datasets
from envs.collect import Recipe
from envs.registry import Options
from experiments.cli import main
from experiments.collect import of_run
from experiments.evaluate import checkpoint


@pytest.fixture(scope="module")
def run(match_file, tmp_path_factory):
    """Two seeds and three checkpoints of a policy that reads histories."""
    out = tmp_path_factory.mktemp("run")
    small = [
        "--steps", "60", "--epoch", "20", "--save-every", "20", "--eval.every", "60", "--eval.episodes", "2",
        "--eval.envs", "2", "--config.hidden", "8", "--config.batch-size", "16", "--keep", "3", "--env.history", "2",
    ]  # fmt: skip
    words = ["train", "bc", "toy/match", "--data.path", match_file, "--out", str(out), "--seeds", "3", "5"]
    assert main([*words, *small, "--name", "run"]) == 0
    return out / "bc" / "toy/match" / "run"


def collect(*words):
    return main(["collect", *map(str, words)])


def replayed(folder, step, index, arrays, rows, number, seed=0):
    """The actions of a run's policy along an episode, by its algorithm and a plain environment."""
    job, _, state = checkpoint(folder, step)
    params = jax.tree.map(lambda x: x[index], state.algo)
    env = envs.make("toy/match", 1, Options(history=2, host=True))
    obs, carry = env.reset([derive(seed, number)]), job.algorithm.init_carry(1)
    for row in rows:
        out = job.algorithm.act_eval(params, obs, carry, jax.random.key(0))
        np.testing.assert_allclose(arrays["action"][row], np.clip(out.action[0], -1, 1), atol=1e-5)
        np.testing.assert_array_equal(arrays["state"][row], obs.state[0, 2:])
        obs = env.step(np.asarray(arrays["action"][row])[None]).obs


def test_a_run_plays_all_its_seeds(run, tmp_path):
    out = tmp_path / "run.npz"
    assert collect("--run", run, "--episodes", 4, "--out", out, "--workers", 1) == 0
    arrays, card = datasets.load(out)
    assert card["task"] == "toy/match"
    assert [(p["seed"], p["checkpoint"], p["episodes"]) for p in card["players"]] == [(3, 60, 2), (5, 60, 2)]
    length = int(arrays["length"][0])
    assert arrays["state"].shape == (4 * (length + 1), 2)  # single frames
    for index in (0, 1):  # player p's first episode has the number p
        begin = 2 * index * (length + 1)
        replayed(run, 60, index, arrays, range(begin, begin + length), number=index)


def test_replay_plays_every_checkpoint_in_equal_shares(run, tmp_path):
    out = tmp_path / "replay.npz"
    words = ("--run", run, "--replay", "--seed-index", 1, "--transitions", 90, "--noise", 0.1)
    assert collect(*words, "--out", out, "--workers", 2) == 0
    _, card = datasets.load(out)
    assert [p["checkpoint"] for p in card["players"]] == [20, 40, 60]
    assert {p["seed"] for p in card["players"]} == {5}
    assert len({p["transitions"] for p in card["players"]}) == 1
    assert card["transitions"] >= 90
    assert collect(*words, "--out", tmp_path / "again.npz", "--workers", 1) == 0
    assert datasets.load(tmp_path / "again.npz")[1]["sha256"] == card["sha256"]


def test_exploring_episodes_depend_on_their_numbers_alone(run, tmp_path):
    """Four episodes are played one by one, forty three at a time; the first four are the same ones."""
    made = []
    for episodes in (4, 40):
        out = tmp_path / f"{episodes}.npz"
        words = ("--run", run, "--explore", "--seed-index", 1, "--episodes", episodes, "--workers", 1)
        assert collect(*words, "--out", out) == 0
        made.append(datasets.load(out)[0])
    few, many = made
    rows = len(few["action"])
    np.testing.assert_allclose(few["action"], many["action"][:rows], atol=1e-5)
    first = np.cumsum(many["length"] + 1) - (many["length"] + 1)
    assert len(np.unique(many["action"][first], axis=0)) == 40


def test_a_replay_set_says_how_many_checkpoints_it_has(run, tmp_path, capsys, monkeypatch):
    words = ("--run", run, "--replay", "--seed-index", 1, "--episodes", 3, "--workers", 1)
    assert collect(*words, "--out", tmp_path / "three.npz") == 0
    assert f"checkpoints that {run} keeps: 3, steps 20 to 60\n" in capsys.readouterr().out
    monkeypatch.setattr("core.checkpoint.Checkpoints.steps", lambda self: [20, 60])
    assert collect(*words, "--out", tmp_path / "two.npz") == 0
    assert "keeps: 2, steps 20 to 60; few for a replay set: train with --keep N" in capsys.readouterr().out


def test_weights_by_the_command_line(tmp_path):
    policy, out = tmp_path / "linear.npz", tmp_path / "weights.npz"
    np.savez(policy, w0=0.5 * np.eye(2, 8, dtype=np.float32), b0=np.zeros(2, np.float32))
    words = ("mujoco/swimmer-v5", "--policy", policy, "--source", "nowhere abc123", "--episodes", 3, "--max-steps", 9)
    assert collect(*words, "--out", out, "--workers", 2) == 0
    arrays, card = datasets.load(out)
    (player,) = card["players"]
    assert player["source"] == "nowhere abc123"
    assert player["sha256"] == hashlib.sha256(policy.read_bytes()).hexdigest()
    assert arrays["length"].tolist() == [9] * 3
    np.testing.assert_allclose(arrays["action"][0], np.clip(0.5 * arrays["state"][0, :2], -1, 1), atol=1e-6)


def test_a_mixture_by_the_command_line(match_file, tmp_path, capsys):
    other, out = tmp_path / "other.npz", tmp_path / "mix.npz"
    arrays, _ = datasets.load(match_file)
    datasets.write(other, {**arrays, "reward": arrays["reward"] - 1}, {"task": "toy/match"})
    words = ("mix", f"{match_file}:1", f"{other}:3", "--transitions", 40)
    assert collect(*words, "--out", out) == 0
    said = capsys.readouterr().out
    assert f"2 files, seed 0 -> {out}" in said
    assert "/40 transitions" in said
    assert "0.750 of the transitions" in said
    assert [round(parent["share"], 2) for parent in datasets.load(out)[1]["parents"]] == [0.25, 0.75]


def test_a_mixture_with_replacement_by_the_command_line(match_file, tmp_path, capsys):
    other, out = tmp_path / "other.npz", tmp_path / "mix.npz"
    arrays, _ = datasets.load(match_file)
    datasets.write(other, {**arrays, "reward": arrays["reward"] - 1}, {"task": "toy/match"})
    words = ("mix", f"{match_file}:0.05", f"{other}:0.95", "--transitions", 600, "--replacement")
    assert collect(*words, "--out", out) == 0
    assert "some more than once" in capsys.readouterr().out
    card = datasets.load(out)[1]
    assert [parent["transitions"] for parent in card["parents"]] == [40, 570]  # more than 30, then more than 600
    assert card["mix"]["replacement"]
    assert main(["data", "describe", str(out)]) == 0
    assert "mix       transitions 600, seed 0, replacement True" in capsys.readouterr().out


def test_refusals(run, match_file, tmp_path, capsys):
    def refused(match, *words):
        assert collect(*words) == 2
        said = capsys.readouterr().err
        assert match in said, said

    out = ("--out", tmp_path / "x.npz")
    refused("which task?", *out)
    refused("--explore is for --run", "toy/match", "--explore", *out)
    refused("--checkpoint is for --run", "toy/match", "--checkpoint", 0, *out)
    refused("--seed-index is for --run", "toy/match", "--seed-index", 0, *out)
    refused("--activation is for --policy", "metaworld/push", "--activation", "relu", *out)
    refused("leave --policy out", "--run", run, "--policy", "x.npz", *out)
    refused("leave --run out", "mix", f"{match_file}:1", "--run", run, *out)
    refused("'a.npz:1' is one word too many", "toy/match", "a.npz:1", *out)
    refused("was trained on toy/match", "toy/value", "--run", run, *out)
    refused("--replay plays all checkpoints", "--run", run, "--replay", "--best", *out)
    refused("2 seeds, 0 to 1", "--run", run, "--seed-index", 2, *out)
    refused("no checkpoint 7", "--run", run, "--checkpoint", 7, *out)
    refused("not a run folder", "--run", tmp_path, *out)
    refused("2 policies cannot share 1", "--run", run, "--episodes", 1, *out)
    refused("--kind is for", "--run", run, "--kind", "play", *out)
    refused("--replacement is for mixtures", "toy/match", "--replacement", *out)
    refused("leave the other options out", "mix", f"{match_file}:1", "--episodes", 3, *out)
    refused("--transitions N and --out FILE", "mix", f"{match_file}:1", *out)
    refused("at least two different files", "mix", f"{match_file}:1", "--transitions", 9, *out)
    assert not list(tmp_path.iterdir())


def test_a_failed_seed_is_not_played(run, monkeypatch):
    job, step, state = checkpoint(run)
    broken = state._replace(failed=np.array([True, False]))
    monkeypatch.setattr("experiments.evaluate.checkpoint", lambda *args: (job, step, broken))
    with pytest.raises(ConfigError, match="seed 3 has failed"):
        of_run(Recipe(""), run, seed_index=0)
    _, source = of_run(Recipe(""), run, explore=True)
    assert [(card["seed"], card["by"]) for card in source.cards] == [(5, "act")]
