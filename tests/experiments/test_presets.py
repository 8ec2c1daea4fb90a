"""Every preset is a run that could begin; sizes differ in sizes; a size that says nothing is refused."""

from dataclasses import fields, replace

import pytest

import algos
from core.config import ConfigError
from experiments import options
from experiments.presets import preset

TASKS = ("mujoco/hopper-v5", "mujoco/humanoid-v5", "mujoco/swimmer-v5", "metaworld/push", "toy/match")
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
