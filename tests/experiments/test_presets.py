"""Every preset is a run that could begin; sizes differ in sizes; a size that says nothing is refused."""

from dataclasses import fields, replace

import pytest

import algos
from core.chunk_policy import Denoising
from core.config import ConfigError
from experiments import hindsight, offline, options, parents, runs
from experiments.presets import preset

TASKS = ("mujoco/hopper-v5", "mujoco/humanoid-v5", "mujoco/swimmer-v5", "metaworld/push", "toy/match")
MAZE = "ogbench/antmaze-medium-navigate-singletask"
FAMILIES = ("reflow", "shortcut", "meanflow", "diffusion", "gaussian")
SIZES = {"batch_size", "epochs", "duplicates", "net", "critic", "noise_decay", "ema_start", "lr_cycle"}
TUNED = ("reinflow", "dppo", "gaussian_ppo")


@pytest.mark.parametrize("algo", algos.names())
def test_presets_can_begin(algo):
    for task in TASKS:
        options.check(preset(algo, task))


@pytest.mark.parametrize("family", FAMILIES)
def test_cloning_has_values_for_each_family(family):
    for task in TASKS:
        for size in ("full", "cpu"):
            train = preset("chain_bc", task, size, family)
            options.check(train)
            assert train.config.net.family == family
    shortcut = preset("chain_bc", TASKS[0], "full", "shortcut").config.net
    assert (shortcut.cond, shortcut.combine) == ((64, 16), "add")
    assert preset("chain_bc", TASKS[1]).steps == 100 * 7_800


@pytest.mark.parametrize("algo", [*TUNED, "chain_bc", "fql", "idql", "dql", "dawr"])
def test_cpu_changes_sizes_only(algo):
    full, cpu = (preset(algo, TASKS[0], size) for size in ("full", "cpu"))
    options.check(cpu)
    other = {f.name for f in fields(full.config) if getattr(full.config, f.name) != getattr(cpu.config, f.name)}
    assert other <= SIZES
    assert replace(cpu.config.net, hidden=full.config.net.hidden) == full.config.net
    assert (full.preset, cpu.preset) == ("full", "cpu")


@pytest.mark.parametrize("algo", offline.PRESETS)
def test_offline_presets(algo):
    for task in (*TASKS, MAZE):
        full, cpu = (preset(algo, task, size, data="data/some.npz") for size in ("full", "cpu"))
        options.check(replace(cpu, data=replace(cpu.data, path="data/some.npz")))
        assert cpu.steps < full.steps == 1_000_000
        assert cpu.data == full.data
        other = {f.name for f in fields(full.config) if getattr(full.config, f.name) != getattr(cpu.config, f.name)}
        assert other <= {"batch_size", "hidden", "actor_hidden", "actor_steps"}
        assert preset(algo, task).data == options.DataOptions()


@pytest.mark.parametrize("algo", hindsight.ALGOS)
@pytest.mark.parametrize("task", ["ogbench/pointmaze-giant", "ogbench/puzzle-3x3", "ogbench/visual-scene"])
def test_goal_conditioned_presets(algo, task):
    full, cpu = (preset(algo, task, size, data=f"data/{task[8:]}-play.npz") for size in ("full", "cpu"))
    for chosen in (full, cpu):
        options.check(chosen)
    other = {f.name for f in fields(full.config) if getattr(full.config, f.name) != getattr(cpu.config, f.name)}
    assert other <= {"batch_size", "hidden", "actor_hidden"}
    assert full.steps == (500_000 if "visual" in task else 1_000_000)
    assert (full.eval.episodes, full.eval.tasks, full.config.temperature) == (250, (1, 2, 3, 4, 5), 0)
    assert full.config.discount == (0.995 if "giant" in task else 0.99)
    assert full.config.crop == (0.5 if "visual" in task else 0)


def test_goal_conditioned_values_follow_the_kind_of_dataset():
    sets = {kind: f"antmaze-large-{kind}-v0.npz" for kind in hindsight.KINDS[:3]}
    hiql = {kind: preset("hiql", "ogbench/antmaze-large", data=name).config for kind, name in sets.items()}
    assert [hiql[kind].high_random for kind in hiql] == [0.0, 0.5, 1.0]
    assert [hiql[kind].high_alpha for kind in hiql] == [3.0, 3.0, 10.0]
    crl = [preset("crl", "ogbench/cube-double", data=f"cube-double-{kind}").config.alpha for kind in ("play", "noisy")]
    assert crl == [3.0, 0.1]
    assert preset("ota", "ogbench/humanoidmaze-medium").config.subgoal_steps == 100
    stitch = preset("gcivl", "ogbench/pointmaze-medium", data="pointmaze-medium-stitch").config.actor_goals
    assert (stitch.future, stitch.random) == (0.5, 0.5)
    assert preset("gcbc", "ogbench/pointmaze-medium", data="pointmaze-medium-stitch").config.actor_goals.random == 0


def test_td3_bc_matched_to_prdc_differs_in_the_neighbour_only():
    for task in ("mujoco/halfcheetah-v5", MAZE):
        matched, twin = preset("td3_bc", task, "matched", data="x"), preset("prdc", task, data="x")
        assert matched.config.alpha == twin.config.alpha != 2.5
        assert (matched.data, matched.steps) == (twin.data, twin.steps)
    small = preset("td3_bc", "mujoco/halfcheetah-v5", "cpu-matched", data="x")
    assert small.config == replace(preset("td3_bc", "mujoco/halfcheetah-v5", "cpu").config, alpha=40.0)
    assert small.steps == 30_000
    with pytest.raises(ConfigError, match="iql has no preset matched"):
        preset("iql", TASKS[0], "matched")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("d4rl/hopper-medium-expert-v2", (0.1, 0.01)), ("data/hopper-replay.npz", (0.05, 0.5)),
        ("d4rl/hopper-medium-v2", (0.01, 0.01)), ("data/hopper-full-replay.npz", (0.01, 0.01)),
        ("hopper-expert-folder/random.npz", (0.001, 0.01)), ("data/hopper-random-expert-0.05.npz", (0.01, 0.01)),
        ("data/hopper-expert-random-0.05.npz", (0.01, 0.01)), ("data/hopper-expert-replay.npz", (0.01, 0.01)),
        ("data/hopper_medium_expert.npz", (0.1, 0.01)), ("data/expertise.npz", (0.01, 0.01)),
    ],
)  # fmt: skip
def test_rebrac_chooses_by_the_kind_of_dataset(data, expected):
    config = preset("rebrac", TASKS[0], data=data).config
    assert (config.actor_bc, config.critic_bc) == expected


def test_published_values_of_mazes():
    """Rewards of 0 and 1 times a, plus b, are those of -1 and 0 times a, plus a + b."""
    rewards = {"prdc": (10_000, -1), "iql": (1, -1), "cql": (10, -5), "rebrac": (100, 0)}
    for algo, (scale, shift) in rewards.items():
        data = preset(algo, MAZE, data="x").data
        for reward in (0, 1):
            assert (reward - 1) * data.reward_scale + data.reward_shift == scale * reward + shift
    prdc, iql, cql, rebrac = (preset(algo, MAZE, data="x").config for algo in rewards)
    assert (prdc.alpha, prdc.beta) == (7.5, 7.5)
    assert (iql.expectile, iql.beta) == (0.9, 10.0)
    assert (cql.conservative_weight, cql.target_gap, cql.lagrange, cql.max_backup) == (5.0, 0.8, True, True)
    assert (cql.gap_clip, len(cql.hidden), len(cql.actor_hidden), cql.actor_lr) == ((-200.0, None), 5, 3, 1e-4)
    assert (rebrac.actor_bc, rebrac.critic_bc, rebrac.discount, rebrac.critic_lr) == (0.001, 0.0005, 0.999, 5e-5)
    assert preset("rebrac", MAZE.replace("medium", "large")).config.actor_bc == 0.002


def test_published_values_of_locomotion():
    assert preset("prdc", "mujoco/halfcheetah-v5").config.alpha == 40.0
    assert preset("prdc", "mujoco/hopper-v5").config.alpha == 2.5
    assert preset("iql", "mujoco/hopper-v5", data="x").data.reward_range == 1000
    assert preset("iql", "mujoco/ant-v5", data="x").data.reward_range == 0
    assert preset("cql", "mujoco/hopper-v5", data="hopper-medium.npz").data.reward_range == 1000
    assert preset("cql", "mujoco/hopper-v5", data="hopper-medium-replay.npz").data.reward_range == 0


@pytest.mark.parametrize("size", ["full", "cpu"])
def test_contenders_take_equally_many_gradient_steps(size):
    steps = set()
    for algo in TUNED:
        train = preset(algo, TASKS[0], size)
        items = train.online.envs * train.online.length * (10 if algo == "dppo" else 1) * train.config.duplicates
        steps.add(train.config.epochs * items / train.config.batch_size)
    assert steps == {{"full": 20, "cpu": 200}[size]}


@pytest.mark.parametrize("algo", [*TUNED, "fql", "idql", "dql", "dawr"])
def test_the_published_protocol_ends_the_task_at_a_time_limit(algo):
    full, published = (preset(algo, TASKS[0], size) for size in ("full", "published"))
    assert (full.config.time_limit, published.config.time_limit) == ("bootstrap", "terminate")
    assert replace(published.config, time_limit="bootstrap") == full.config


@pytest.mark.parametrize(("algo", "task"), [("td3_bc", TASKS[0]), ("dql", "toy/match"), ("reinflow", "metaworld/push")])
def test_a_size_that_says_nothing_is_refused(algo, task):
    with pytest.raises(ConfigError, match="no preset published"):
        preset(algo, task, "published")


def cloned(folder, task, family="reflow", **denoising):
    """The folder of a run of cloning that has not begun."""
    train = preset("chain_bc", task, "cpu", family)
    config = replace(train.config, denoising=Denoising(**denoising))
    runs.create(runs.Run(folder, "chain_bc", task, replace(train, config=config)), {})
    return str(folder)


def test_humanoids_shortcut_policies_are_tuned_for_longer_than_its_flows(tmp_path):
    for family, iterations in (("reflow", 180), ("shortcut", 900)):
        folder = cloned(tmp_path / family, "mujoco/humanoid-v5", family)
        assert parents.family(folder) == family
        chosen = preset("reinflow", "mujoco/humanoid-v5", "full", parents.family(folder))
        chosen = parents.defaults("reinflow", chosen, folder)
        assert chosen.config.net.family == family
        assert chosen.steps == iterations * chosen.epoch
        assert chosen.config.noise_decay == iterations


def test_a_run_without_a_policy_net_has_no_family(tmp_path):
    runs.create(runs.Run(tmp_path / "bc", "bc", TASKS[0], preset("bc", TASKS[0])), {})
    assert parents.family(str(tmp_path / "bc")) == ""


def test_denoising_steps_are_the_parents_unless_chosen(tmp_path):
    folder = cloned(tmp_path / "run", TASKS[0], steps=3, grid="inclusive")
    child = preset("reinflow", TASKS[0])
    assert child.config.denoising == Denoising()
    taken = parents.defaults("reinflow", child, folder)
    assert taken.config.denoising == Denoising(3, "inclusive")
    assert taken.config.net == runs.load(folder).train.config.net != child.config.net
    child = preset("fql", TASKS[0])
    assert child.config.denoising == Denoising(10)
    assert parents.defaults("fql", child, folder).config.denoising == Denoising(10)
    child = replace(child, config=replace(child.config, denoising=Denoising()))
    assert parents.defaults("fql", child, folder).config.denoising == Denoising(3, "inclusive")
