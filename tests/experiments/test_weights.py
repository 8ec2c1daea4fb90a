"""`--data.weights` and `--data.reward-*`: what a run learns from, by the command line and inside a job."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import algos
from core import batches, loop, sampling, weights
from core import dataset as ds
from core.config import ConfigError, changed, fingerprint
from core.dataset import DataError
from core.metrics import read_lines
from core.types import EnvSpec, Observation, Start
from envs import datasets
from envs.registry import Options
from experiments import options, runs
from experiments.cli import main
from experiments.job import Job
from experiments.options import DataOptions, Train
from experiments.runs import Run
from tests.conftest import match_arrays

SMALL = [
    "--steps", "40", "--epoch", "20", "--save-every", "20", "--eval.every", "40", "--eval.episodes", "2",
    "--eval.envs", "2", "--config.hidden", "8", "--config.batch-size", "16",
]  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Random actions in toy/match: 80 episodes of 5 and 4 transitions."""
    path = tmp_path_factory.mktemp("weights") / "set.npz"
    lengths = {"length": np.tile(np.int32([5, 4]), 40), "success": np.zeros(80, np.float32)}
    datasets.write(path, {**match_arrays(), **lengths}, {"task": "toy/match"})
    return str(path)


def train(file, out, *more, algo="bc", name="run"):
    words = ["train", algo, "toy/match", "--data.path", file, "--out", str(out), "--name", name, *SMALL, *more]
    assert main(words) == 0
    return out / algo / "toy/match" / name


def prepared(file, algo="bc", env=None, config=None, **data):
    """A job whose data are on the device."""
    default = algos.load(algo).Config(**(config or {"hidden": (8,)}))
    job = Job(Run(None, algo, "toy/match", Train(default, data=DataOptions(file, **data), env=env or Options())))
    job.prepare()
    return job


def per_transition(job, text):
    of = ds.episodes(job.data)
    p = weights.probabilities(weights.parse(text), of.ret, of.length, job.data.state[of.first])
    return np.repeat(p, of.length)


@pytest.mark.parametrize("algo", ["bc", "td3_bc"])
def test_a_weighted_run(file, tmp_path, capsys, algo):
    """Says how unevenly it draws, keeps that on its card, and goes on with the same weights."""
    folder = train(file, tmp_path, "--data.weights", "aw", algo=algo)
    said = capsys.readouterr().out
    card = json.loads((folder / "meta.json").read_text())["data"]
    found = card["weights"]
    assert found["scheme"] == "aw:0.1"
    assert 1 < found["effective episodes"] < 40
    assert found["effective episodes"] < found["effective transitions"] < 180
    assert f"weights aw:0.1: draws repeat as if {found['effective transitions']:,.0f} of 360 transitions" in said
    assert "of 80 episodes were drawn alike" in said
    assert runs.load(folder).train.data.weights == "aw"
    assert main(["resume", str(folder), "--steps", "60"]) == 0
    assert main(["eval", str(folder), "--episodes", "2", "--envs", "2"]) == 0
    assert read_lines(folder / "metrics.jsonl")[-1]["step"] == 60


@pytest.mark.parametrize("text", ["rw:0.1", "aw:0.1", "top:0.2", "half:0.2"])
def test_a_job_draws_by_its_weights(file, text):
    job, plain = prepared(file, weights=text), prepared(file)
    p = per_transition(job, text)
    np.testing.assert_allclose(sampling.probabilities(job.on_device.sampler), p, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(sampling.probabilities(plain.on_device.sampler), 1 / 360)
    assert "weights" not in plain.card
    for ours, theirs in zip(job.start.norm, plain.start.norm, strict=True):  # statistics are those of all data
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(job.data.reward, plain.data.reward)


def test_weights_of_whole_chunks(file):
    """Transitions without four steps ahead are never drawn, the others in their old ratios."""
    config = {"net": dataclasses.replace(algos.load("chain_bc").Config().net, hidden=(8,))}
    job = prepared(file, "chain_bc", Options(chunk=4), config, weights="rw:0.1")
    usable = ds.whole(job.data, 4)
    assert 0 < usable.sum() < len(usable)
    p = per_transition(job, "rw:0.1") * usable
    np.testing.assert_allclose(sampling.probabilities(job.on_device.sampler), p / p.sum(), rtol=1e-6, atol=1e-12)
    with pytest.raises(DataError, match=r"no episode is as long as --env\.chunk 6"):
        prepared(file, "chain_bc", Options(chunk=6), config, weights="rw:0.1")


def test_rewards_to_learn_from(file):
    """Weights are of the file's own rewards, whatever is learned from."""
    plain = prepared(file, weights="rw:0.1")
    job = prepared(file, weights="rw:0.1", reward_scale=100.0, reward_shift=-1.0)
    np.testing.assert_allclose(job.data.reward, 100 * plain.data.reward - 1, rtol=1e-6, atol=1e-5)
    assert job.card["rewards"] == {"scale": 100.0, "shift": -1.0, "range": 0.0}
    for ours, theirs in zip(job.on_device.sampler, plain.on_device.sampler, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(job.on_device.dataset.reward, job.data.reward)
    spread = ds.episodes(prepared(file, reward_range=1000.0).data).ret
    assert np.ptp(spread) == pytest.approx(1000, rel=1e-5)


def test_returns_that_are_judged_are_the_task_s(file, tmp_path):
    """Cloning looks at no reward: with others it learns the same, and is judged the same."""
    plain = train(file, tmp_path, name="plain")
    changed_ = train(file, tmp_path, "--data.reward-scale", "100", "--data.reward-shift", "-5", name="changed")
    ours, theirs = (read_lines(folder / "eval.jsonl") for folder in (plain, changed_))
    assert ours == theirs
    assert runs.identity(runs.load(plain)) != runs.identity(runs.load(changed_))


def test_the_fingerprint_holds_what_was_changed():
    def method(**data):
        config = algos.load("bc").Config()
        return options.method("bc", "toy/match", Train(config, data=DataOptions("set.npz", **data)), "hash")

    config = algos.load("bc").Config()
    before = {"algo": "bc", "task": "toy/match", "data": "hash", "config": changed(config), "env": {}}
    assert method() == method(any_task=True) == method(weights="uniform") == fingerprint(before)
    assert method(weights="aw") == method(weights="aw:0.10")
    different = [{}, {"weights": "aw"}, {"weights": "rw"}, {"weights": "aw:0.2"}, {"reward_shift": -1.0},
                 {"reward_scale": 2.0}, {"reward_range": 1000.0}]  # fmt: skip
    assert len({method(**data) for data in different}) == len(different)


def test_half_of_each_file_of_a_mixture(file, tmp_path):
    other, out = tmp_path / "other.npz", tmp_path / "mix.npz"
    arrays, _ = datasets.load(file)
    datasets.write(other, {**arrays, "reward": arrays["reward"] + 1}, {"task": "toy/match"})
    words = ["collect", "mix", f"{file}:0.9", f"{other}:0.1", "--transitions", "300", "--replacement"]
    assert main([*words, "--out", str(out)]) == 0
    job = prepared(str(out), weights="half")
    first = job.card["parents"][0]["transitions"]
    p = sampling.probabilities(job.on_device.sampler)
    assert p[:first].sum() == pytest.approx(0.5)
    assert np.ptp(p[:first]) < 1e-9
    with pytest.raises(ConfigError, match=r"--data.weights half on .*set.npz: half draws from both datasets"):
        prepared(file, weights="half")


def test_cloning_copies_the_better_behaviour():
    """Nine of ten episodes do -0.5 and get 0, one does 0.5 and gets 1: plain cloning does their mean, -0.4."""
    rng = np.random.default_rng(0)
    good = np.arange(400) % 10 == 0
    length = np.where(good, 1, 3)
    state = rng.uniform(-1, 1, (int((length + 1).sum()), 2)).astype(np.float32)
    which = np.repeat(good, length + 1)
    action = np.where(which, 0.5, -0.5).astype(np.float32)[:, None]
    data = ds.from_lengths(state, action, which.astype(np.float32), np.zeros(len(state), bool), length)
    spec, norm, of = EnvSpec("pair", (2,), 1), ds.norm(data, "standard"), ds.episodes(data)
    obs = Observation(state[:50], np.zeros((50, 0)), np.zeros(50), np.zeros(50, np.int32))
    algorithm = algos.load("bc").make(algos.load("bc").Config(hidden=(16,), batch_size=64, lr=3e-3), spec)
    epoch = jax.jit(loop.epoch(algorithm, 600))
    mean = {}
    for text in ("uniform", "rw:0.1", "top:0.1", "half:0.1"):
        p = weights.probabilities(weights.parse(text), of.ret, of.length, state[of.first])
        sampler = sampling.alias_table(np.repeat(p, of.length))
        run, _ = epoch(loop.begin(algorithm, Start(norm), (0,)), batches.data(data, norm, sampler))
        algo = jax.tree.map(lambda x: x[0], run.algo)
        mean[text] = float(algorithm.act_eval(algo, obs, (), jax.random.key(0)).action.mean())
    uniform = (0.5 * 40 - 0.5 * 1080) / 1120
    assert mean["uniform"] == pytest.approx(uniform, abs=0.06)
    assert mean["rw:0.1"] == pytest.approx(0.5, abs=0.06)
    assert mean["top:0.1"] == pytest.approx(0.5, abs=0.06)
    assert mean["half:0.1"] == pytest.approx(0, abs=0.08)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.weights", "aww:1"], "unknown weights 'aww:1'; they are uniform, rw:T, aw:T"),
        (["--data.weights", "rw:-1"], "rw takes a temperature above 0"),
        (["--data.weights", "top:0.001"], "a share of 0.001 of 80 episodes is none of them; take a larger one"),
        (["--data.weights", "half"], "half:x splits any dataset by its returns"),
        (["--data.reward-range", "-5"], "reward_range -5 must be at least 0"),
        (["--data.reward-scale", "1e39"], "leave float32"),
        (["--data.reward-scale", "nan"], "--data.reward-scale nan is not a number"),
    ],
)
def test_what_is_refused(file, tmp_path, capsys, words, message):
    assert main(["train", "bc", "toy/match", "--data.path", file, "--out", str(tmp_path), *SMALL, *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_equal_returns_have_no_range(tmp_path, capsys):
    path = tmp_path / "flat.npz"
    arrays = match_arrays(4)
    datasets.write(path, {**arrays, "reward": np.ones_like(arrays["reward"])}, {"task": "toy/match"})
    words = ["train", "bc", "toy/match", "--data.path", str(path), "--out", str(tmp_path / "runs"), *SMALL]
    assert main([*words, "--data.reward-range", "1000"]) == 2
    assert "flat.npz: reward_range 1000: all episodes have the return 10; leave it at 0" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--data.weights", "rw"], ["--data.reward-shift", "-1"]])
def test_without_a_dataset_they_are_refused(tmp_path, capsys, words):
    assert main(["train", "sac", "toy/match", "--out", str(tmp_path), *words]) == 2
    assert f"{words[0]} is about a dataset: name one by --data.path, or leave it out" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
