"""Online runs by the command line: resume is exact where the simulator allows it, experience lies apart, refusals."""

import shutil

import numpy as np
import pytest

from core import online
from core.checkpoint import Checkpoints
from experiments.cli import main
from experiments.evaluate import evaluate
from tests.experiments.test_runs import ON_POLICY, final, net_hidden, untimed

SMALL = [
    "--eval.episodes", "2", "--eval.envs", "2", "--config.hidden", "8", "--config.batch-size", "16",
    "--online.envs", "4",
]  # fmt: skip
SAC = [*SMALL, "--online.length", "2", "--online.utd", "0.5", "--online.warmup", "16", "--online.replay", "200"]
PPO = [*SMALL, "--online.length", "8", "--config.epochs", "2"]


def train(out, algo, task, options, steps, *more, name="run"):
    every = [word for option in ("epoch", "save-every", "eval.every") for word in (f"--{option}", "32")]
    return main([
        "train", algo, task, "--out", str(out), "--name", name, "--steps", str(steps), *every, *options, *more
    ])  # fmt: skip


CASES = {
    "sac, jitted": ("sac", "toy/match", SAC, ("--seeds", "0", "1")),
    "ppo, jitted": ("ppo", "toy/match", PPO, ()),
    "sac, simulator": ("sac", "mujoco/hopper-v5", SAC, ("--seeds", "0", "1", "--env.max-steps", "20")),
    "ppo, simulator": ("ppo", "mujoco/hopper-v5", PPO, ("--env.max-steps", "20")),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_equals_never_stopped(case, tmp_path):
    algo, task, options, more = CASES[case]
    assert train(tmp_path, algo, task, options, 64, *more, name="straight") == 0
    assert train(tmp_path, algo, task, options, 32, *more) == 0
    straight, folder = (tmp_path / algo / task / name for name in ("straight", "run"))
    assert main(["resume", str(folder), "--steps", "64"]) == 0
    assert untimed(folder, "eval.jsonl") == untimed(straight, "eval.jsonl")
    # NaN where nothing was learned or no episode ended
    for row, other in zip(untimed(folder), untimed(straight), strict=True):
        np.testing.assert_equal(row, other)
    assert final(folder)["digest"] == final(straight)["digest"]
    kept = [Checkpoints(f / "experience") for f in (folder, straight)]
    assert kept[0].meta(64)["digest"] == kept[1].meta(64)["digest"]


@pytest.mark.parametrize("algo", [name for name in ON_POLICY if name != "ppo"])
def test_policies_of_chunks_train_by_acting(algo, tmp_path):
    options = [net_hidden(word) for word in SMALL] + ["--online.length", "4", "--env.chunk", "2"]
    assert train(tmp_path, algo, "toy/match", options, 64) == 0
    rows = untimed(tmp_path / algo / "toy/match" / "run")
    assert [row["step"] for row in rows] == [32, 64]  # a chunk counts as its two steps
    assert all(np.isfinite(row["episode/return"]) for row in rows[1:])


def test_a_simulator_that_cannot_be_read_out_begins_new_episodes(tmp_path, monkeypatch, capsys):
    host = ("--env.host",)
    assert train(tmp_path, "sac", "toy/match", SAC, 32, *host) == 0
    folder = tmp_path / "sac" / "toy/match" / "run"
    enter, seen = online.enter, []

    def entered(run, seeds, world):
        state = enter(run, seeds, world)
        seen.extend(np.array(x) for x in (state.rollout.at.obs.step, state.replay.added))
        return state

    monkeypatch.setattr(online, "enter", entered)
    assert main(["resume", str(folder), "--steps", "64"]) == 0
    assert "new episodes begin" in capsys.readouterr().out
    assert (seen[0] == 0).all()  # the environments' clocks
    assert (seen[1] == 8).all()  # the replay is as it was: 32 steps of 4 environments
    assert [row["step"] for row in untimed(folder)] == [32, 64]


def test_a_kill_between_the_two_writes_of_a_checkpoint_loses_one_epoch(tmp_path):
    assert train(tmp_path, "sac", "toy/match", SAC, 64, name="straight") == 0
    assert train(tmp_path, "sac", "toy/match", SAC, 64) == 0
    straight, folder = (tmp_path / "sac" / "toy/match" / name for name in ("straight", "run"))
    shutil.rmtree(folder / "ckpt" / "000000064")
    assert main(["resume", str(folder)]) == 0
    assert final(folder)["digest"] == final(straight)["digest"]


def test_judging_needs_no_experience_and_resuming_says_where_it_is_missing(tmp_path, capsys):
    assert train(tmp_path, "sac", "toy/match", SAC, 96) == 0
    folder = tmp_path / "sac" / "toy/match" / "run"
    assert Checkpoints(folder / "experience").steps() == [64, 96]
    shutil.rmtree(folder / "experience" / "000000096")
    assert len(evaluate(folder, 2, 2, 5)) == 1
    assert main(["resume", str(folder), "--steps", "128"]) == 2
    assert "add --checkpoint N, N one of [64]" in capsys.readouterr().err
    assert main(["resume", str(folder), "--steps", "128", "--checkpoint", "64"]) == 0
    assert Checkpoints(folder / "ckpt").steps()[-1] == 128


@pytest.mark.parametrize(
    ("algo", "options", "said"),
    [
        ("td3_bc", (), "needs --data.path"),
        ("ppo", ("--data.path", "some.npz", "--online.envs", "16"), "on-policy: it learns from what it does"),
        ("sac", ("--config.state-norm", "standard"), "statistics of a dataset"),
        ("sac", ("--online.utd", "0.3"), "whole number of updates"),
        ("sac", ("--online.envs", "5"), "not a whole number of iterations of 5 steps"),
        ("sac", ("--online.replay", "2"), "cannot hold"),
        ("ppo", ("--online.warmup", "10"), "on-policy"),
        ("ppo", ("--online.length", "8", "--config.batch-size", "3"), "whole minibatches of 3"),
        ("sac", ("--online.warmup", "32"), "leaves none of --steps 32"),
        ("sac", ("--online.warmup", "0", "--online.replay", "4000000000000"), "GB are free: make it smaller"),
        ("sac", ("--data.path", "some.npz"), "--online options are for training without a dataset"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(algo, options, said, tmp_path, capsys):
    assert train(tmp_path, algo, "toy/match", ("--online.envs", "4"), 32, *options) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
