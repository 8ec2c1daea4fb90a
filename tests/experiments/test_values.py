"""`rheostat eval --values`: critics beside what followed, on tasks whose values are known."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import algos
from core import dataset as ds
from core.metrics import read_lines
from core.seeds import derive
from core.types import EnvSpec, Norm, Observation, Start, Transition
from envs import Options, datasets, make
from envs.toys import build
from experiments import runs, values
from experiments.cli import main
from experiments.values import Values, compare, judged, learned_from, summary
from tests.conftest import match_arrays

SPEC = EnvSpec("toy", (3,), 2)
NORM = Norm(*(np.float32(x) for x in ([1, -1, 2], [2, 3, 0.5], [0.1, -0.2], [0.5, 0.8])))
SMALL = [
    "--steps", "20", "--epoch", "20", "--save-every", "20", "--eval.every", "20", "--eval.episodes", "2",
    "--eval.envs", "2", "--config.hidden", "8", "--config.batch-size", "16",
]  # fmt: skip
GAMMA = 0.8


# --- what the critic says ---


def some_transitions(rows=16):
    rng = np.random.default_rng(0)
    s, ns = (rng.normal(1, 2, (rows, 3)).astype(np.float32) for _ in range(2))
    none = np.zeros(rows, np.float32)

    def seen(state):
        return Observation(state, np.zeros((rows, 0), np.float32), none, none.astype(np.int32))

    extras = {"discount": none + np.float32(GAMMA), "next_action": np.zeros((rows, 2), np.float32), "known": none > 1}
    action = rng.uniform(-1, 1, (rows, 2)).astype(np.float32)
    return Transition(seen(s), action, none, seen(ns), none > 1, none > 1, extras)


READ = {"td3_bc": {"max_action": 2.0}, "prdc": {"max_action": 2.0}}
READ |= {name: {"action_limit": 0.4} for name in ("iql", "cql")}


@pytest.mark.parametrize("name", ["td3_bc", "prdc", "iql", "cql", "rebrac", "sac"])
def test_value_is_the_least_of_what_the_critics_learn(name):
    """On states and actions as the algorithm's own `to_batch` reads them, here of the environment's units."""
    module = algos.load(name)
    learns = algos.load("td3_bc") if name == "prdc" else module
    cfg = module.Config(hidden=(8,), **READ.get(name, {}))
    algorithm, t = module.make(cfg, SPEC), some_transitions()
    state = algorithm.init(jax.random.key(0), Start(NORM))
    state = state._replace(critic=state.critic._replace(params=jax.tree.map(lambda x: x * 3, state.critic.params)))
    batch = learns.to_batch(NORM, t, *([] if name in ("sac", "rebrac") else [cfg]))
    q = learns.networks(cfg, SPEC).critic.apply(state.critic.params, batch.obs, batch.action)
    assert q.shape == (2, 16)
    assert 0 < (q[0] < q[1]).sum() < 16  # each is the least somewhere
    np.testing.assert_allclose(algorithm.value(state, t.obs, t.action), np.min(q, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("base", ["td3_bc", "iql", "cql"])
def test_density_ratio_weighting_has_the_value_of_its_algorithm(base):
    module, inner = algos.load(f"dw_{base}"), algos.load(base)
    weighted, plain = module.make(module.Config(hidden=(8,)), SPEC), inner.make(inner.Config(hidden=(8,)), SPEC)
    state, t = weighted.init(jax.random.key(0), Start(NORM)), some_transitions()
    np.testing.assert_array_equal(weighted.value(state, t.obs, t.action), plain.value(state.base, t.obs, t.action))


def test_algorithms_without_such_a_critic_say_so():
    assert algos.load("bc").make(algos.load("bc").Config(), SPEC).value is None


# --- Q beside returns ---


def episodes():
    """Three transitions that end the task, and two that the clock ends; the state is the row's number."""
    state = np.arange(7, dtype=np.float32)[:, None]
    reward = np.float32([1, 2, 4, 0, 3, 5, 0])
    ended = np.arange(7) == 2
    return ds.from_lengths(state, np.zeros((7, 1), np.float32), reward, ended, np.array([3, 2]))


TRUE = np.array([1 + 2 * GAMMA + 4 * GAMMA**2, 2 + 4 * GAMMA, 4, 0, 3 + 5 * GAMMA, 5, 0])  # without what follows
LATER = np.array([0, 0, 0, 0, GAMMA**2, GAMMA, 1])  # how much what follows the clock's end counts


def still(obs):
    return np.zeros((len(obs.step), 1))


@pytest.mark.parametrize("after", [0.0, 10.0])
@pytest.mark.parametrize("error", [0.0, 2.5])
def test_an_error_of_the_critic_is_measured(after, error):
    """Off by c everywhere: by c where the task ended, and where the clock did by what its own word does not hide.

    `after` is the true value of the state at which the clock ended the episode.
    """
    true = TRUE + LATER * after
    found = compare(lambda obs, action: true[obs.state[:, 0].astype(int)] + error, still, episodes(), GAMMA)
    row = [0, 1, 2, 4, 5]
    np.testing.assert_allclose(found.q, true[row] + error, rtol=1e-12)
    np.testing.assert_allclose(found.ret, (true + LATER * error)[row], rtol=1e-6)
    np.testing.assert_allclose(found.tail, (LATER * (after + error))[row], rtol=1e-12)
    np.testing.assert_allclose((found.q - found.ret)[:3], error, atol=1e-6)
    np.testing.assert_allclose((found.q - found.ret)[3:], error * (1 - LATER[[4, 5]]), atol=1e-6)


def test_the_last_state_is_judged_at_the_policy_s_action():
    """The critic is the action, which is 0 in the data; the policy gives 7 at the end alone."""
    asked = []

    def policy(obs):
        asked.append(obs)
        return np.full((len(obs.step), 1), 7.0)

    found = compare(lambda obs, action: action[:, 0], policy, episodes(), GAMMA)
    assert np.all(found.q == 0)
    np.testing.assert_allclose(found.tail, [0, 0, 0, 7 * GAMMA**2, 7 * GAMMA])
    assert len(asked) == 1
    np.testing.assert_array_equal(asked[0].state[:, 0], [3, 6])
    np.testing.assert_array_equal(asked[0].step, [3, 2])
    np.testing.assert_array_equal(asked[0].reward, [4, 5])


def test_critics_of_histories_see_them():
    seen = []

    def value(obs, action):
        seen.append(obs.state)
        return np.zeros(len(action))

    compare(value, still, episodes(), GAMMA, history=2)
    np.testing.assert_array_equal(seen[0], [[0, 0], [0, 1], [1, 2], [2, 3], [4, 4], [4, 5], [5, 6]])


def test_summary():
    found = summary(Values(*np.array([[3.0, 1.0], [-2.0, 4.0], [0.0, 1.0]])))
    assert found == {"q": 2, "monte_carlo": 1, "difference": 1, "tail": 0.5, "percent": pytest.approx(100 / 3)}
    nothing = np.zeros(2)
    assert summary(Values(nothing + 1, nothing, nothing))["percent"] is None


def test_any_number_of_rows_is_one_program(monkeypatch):
    monkeypatch.setattr(values, "ROWS", 4)
    traces = []

    def q(state, obs, action):
        traces.append(0)
        return state * obs.state[:, 0] + action[:, 0]

    act = lambda state, obs, carry, key: SimpleNamespace(action=3 * obs.state)  # noqa: E731
    value, policy = judged(SimpleNamespace(value=q, act_eval=act, init_carry=lambda n: ()))
    for rows in (1, 4, 11):
        obs = Observation(*(np.arange(rows, dtype=np.float32)[:, None],) * 2, *(np.arange(rows),) * 2)
        np.testing.assert_allclose(value(2.0, obs, np.ones((rows, 1))), 2 * np.arange(rows) + 1)
    assert len(traces) == 1
    assert policy(2.0, obs).max() == 1  # as the environment takes it


# --- the rewards that a run learned from ---


def learned(monkeypatch, returns=None, **change):
    data = {"reward_scale": 1.0, "reward_shift": 0.0, "reward_range": 0.0, **change}
    monkeypatch.setattr(runs, "data_returns", lambda folder: returns)
    run = SimpleNamespace(folder=None, train=SimpleNamespace(data=SimpleNamespace(**data)))
    return learned_from(run)(episodes().reward)


def test_reward_options(monkeypatch):
    raw = episodes().reward
    np.testing.assert_array_equal(learned(monkeypatch), raw)
    np.testing.assert_allclose(learned(monkeypatch, reward_scale=10.0, reward_shift=-5.0), 10 * raw - 5)
    ranged = learned(monkeypatch, (2.0, 42.0), reward_scale=3.0, reward_shift=1.0, reward_range=1000.0)
    np.testing.assert_allclose(ranged, 3 * 25 * raw + 1)  # of the dataset's returns, not of the episodes played


# --- the command line ---


def train(out, file, task, name, *more, algo="td3_bc"):
    words = ["train", algo, task, "--data.path", str(file), "--out", str(out), "--name", name, *SMALL, *more]
    assert main(words) == 0
    return out / algo / task / name


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """A dataset of toy/match whose returns differ."""
    path = tmp_path_factory.mktemp("values") / "set.npz"
    datasets.write(path, match_arrays(), {"task": "toy/match"})
    return path


@pytest.fixture(scope="module")
def run(spread, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    words = "--data.reward-range 50 --data.reward-shift 2 --seeds 3 5 --steps 3000 --epoch 1000 --save-every 3000"
    words += " --eval.every 3000 --env.history 2 --config.hidden 64 --config.batch-size 128 --config.alpha 10"
    words += f" --config.tau 0.02 --config.critic-lr 0.003 --config.discount {GAMMA}"
    return train(out, spread, "toy/match", "run", *words.split())


def exact(error, factor, shift):
    """In the place of `checkpoint`: Q of giving the same action for ever in toy/match, and a constant error."""
    task, found = build("match"), values.checkpoint

    def value(state, obs, action):
        reward = factor * task.reward(obs.state[:, -2:], action) + shift
        return reward / (1 - GAMMA) + error

    def checkpoint(*args):
        job, step, state = found(*args)
        job.algorithm = job.algorithm._replace(value=value)
        return job, step, state

    return checkpoint


@pytest.mark.parametrize("error", [0.0, 4.0])
def test_an_exact_critic_by_the_command_line(run, monkeypatch, capsys, error):
    """Of the rewards learned from, histories in the state, two seeds; an error shows but for what the tail hides."""
    of = json.loads((run / "meta.json").read_text())["data"]["return"]
    factor = 50 / (of["max"] - of["min"])
    monkeypatch.setattr(values, "checkpoint", exact(error, factor, 2.0))
    before = len(read_lines(run / "values.jsonl"))
    assert main(["eval", str(run), "--values", "--episodes", "6", "--envs", "2", "--seed", "7"]) == 0
    rows = read_lines(run / "values.jsonl")[before:]
    assert [(row["seed"], row["step"], row["episodes"], row["transitions"]) for row in rows] == [
        (3, 3000, 6, 60), (5, 3000, 6, 60)
    ]  # fmt: skip
    shown = np.mean(1 - GAMMA ** np.arange(10, 0, -1.0))
    said = capsys.readouterr().out.splitlines()
    for row, line in zip(rows, said, strict=True):
        assert row["difference"] == pytest.approx(error * shown, abs=2e-3)
        assert row["q"] - row["monte_carlo"] == pytest.approx(row["difference"])
        assert abs(row["tail"]) > 1
        assert (row["discount"], row["eval_seed"], row["failed"]) == (GAMMA, 7, False)
        assert f"seed {row['seed']}  step 3000  6 episodes  Q {row['q']:.2f}  Monte Carlo" in line
    assert rows[0]["monte_carlo"] != rows[1]["monte_carlo"]


def test_an_exact_critic_where_the_task_ends(tmp_path, monkeypatch):
    """toy/value ends after one step: nothing is added, and the whole error shows."""
    file, task = tmp_path / "value.npz", build("value")
    rng, rows = np.random.default_rng(0), np.arange(80)
    arrays = {
        "state": rng.uniform(-1, 1, (80, 2)).astype(np.float32), "action": np.zeros((80, 1), np.float32),
        "reward": np.zeros(80, np.float32), "terminated": rows % 2 == 0, "length": np.ones(40, np.int32),
        "success": np.zeros(40, np.float32),
    }  # fmt: skip
    datasets.write(file, arrays, {"task": "toy/value"})
    folder, found = train(tmp_path, file, "toy/value", "run"), values.checkpoint

    def checkpoint(*args):
        job, step, state = found(*args)
        job.algorithm = job.algorithm._replace(value=lambda state, obs, action: task.value(obs.state) - 0.75)
        return job, step, state

    monkeypatch.setattr(values, "checkpoint", checkpoint)
    (row,) = values.measure(folder, episodes=8, envs=4, seed=0)
    assert row["difference"] == pytest.approx(-0.75, abs=1e-6)
    assert row["tail"] == 0
    first = make("toy/value", 8, Options(host=True)).reset([derive(0, n) for n in range(8)]).state
    assert row["monte_carlo"] == pytest.approx(task.value(first).mean(), rel=1e-5)
    assert row["percent"] == pytest.approx(-75 / np.abs(task.value(first)).mean(), rel=1e-5)


def test_a_trained_critic_is_nearly_right(run):
    """TD3+BC on uniformly random actions, which cover what the policy may do."""
    for row in values.measure(run, episodes=20, envs=20, seed=0):
        assert 0 < row["tail"] < row["monte_carlo"]
        assert abs(row["percent"]) < 10


def refused(capsys, *words):
    assert main(["eval", *map(str, words), "--values"]) == 2
    return capsys.readouterr().err


def test_what_is_refused(run, spread, tmp_path, capsys):
    cloned = train(tmp_path, spread, "toy/match", "run", algo="bc")
    capsys.readouterr()
    assert "bc has no critic of states and single actions" in refused(capsys, cloned)
    assert "--episodes 5 is not a multiple of 2" in refused(capsys, run, "--episodes", 5, "--envs", 2)
    assert "leave --denoising-steps out" in refused(capsys, run, "--denoising-steps", 2)
    assert "no checkpoint 7" in refused(capsys, run, "--checkpoint", 7)
    meta = (run / "meta.json").read_text()
    try:
        (run / "meta.json").write_text(json.dumps({**json.loads(meta), "data": {"sha256": runs.data_hash(run)}}))
        assert "meta.json is missing or damaged ('return'); restore it" in refused(
            capsys, run, "--episodes", 2, "--envs", 2
        )
    finally:
        (run / "meta.json").write_text(meta)
    assert not (cloned / "values.jsonl").exists()
