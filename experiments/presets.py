"""Tuned values per algorithm and task, each with its source.  A preset is a function of the task to options.

Those of algorithms that learn from a dataset are in `experiments.offline`, of goal-conditioned ones in
`experiments.hindsight`.  The defaults in `algos/*.py` are the papers' own; a preset says only what differs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import algos
from core.chunk_policy import PolicyNet
from core.config import ConfigError, choose
from core.critics import Network
from envs.registry import Options
from experiments import hindsight, offline
from experiments.offline import robot_of
from experiments.options import EvalOptions, OnlineOptions, PresetName, Train


def sac(task: str) -> dict[str, Any]:
    # Haarnoja et al. 2018, table 1: one update per step, a replay of 1M.  Ten thousand random steps as its authors
    # take on HalfCheetah and Ant; eight simulators instead of one, so that the policy is asked once for eight steps.
    online = OnlineOptions(envs=8, warmup=10_000)
    return {
        "steps": 1_000_000, "epoch": 2_000, "save_every": 50_000, "online": online,
        "eval": EvalOptions(every=20_000, episodes=10),
    }  # fmt: skip


def ppo(task: str) -> dict[str, Any]:
    # Schulman et al. 2017, table 3: horizon 2048, 10 epochs, minibatches of 64; here of 16 simulators x 128 steps.
    online = OnlineOptions(envs=16, length=128)
    chosen = {
        "steps": 1_024_000, "epoch": 10_240, "save_every": 102_400, "online": online,
        "eval": EvalOptions(every=20_480, episodes=10),
    }  # fmt: skip
    if task.startswith("mujoco/"):
        # ours: with the paper's network HalfCheetah-v5 stays at a slow gait, see experiments/RESULTS.md
        chosen["config"] = algos.load("ppo").Config(hidden=(256, 256), activation="relu", log_std=-1.0)
    return chosen


# --- policies of action chunks ---
# full: the published sizes.  cpu: sizes for two cores, of networks, rollouts, minibatches and budgets, and the epochs
# over them; rates and the rest stay.  published: full, with a time limit counted as the end of the task, as the
# published curves have it.
CPU_BODY = (128, 128, 128)


# ReinFlow (commit aed2819) and, for its diffusion of three robots, DPPO (cc7234a): epochs at batch 128 over D4RL's 1M
# transitions, 7,812 updates each.  Neither has a file for halfcheetah's flows: hopper's are taken, as for other robots.
BC_EPOCHS = {
    "reflow": {"hopper": 40, "walker2d": 80, "ant": 50, "humanoid": 100},
    "shortcut": {"hopper": 40, "walker2d": 40, "ant": 50, "humanoid": 60},
    "diffusion": {"hopper": 200, "walker2d": 200, "halfcheetah": 200, "ant": 20, "humanoid": 120},
}


def chain_bc(task: str, size: str, family: str = "") -> dict[str, Any]:
    module, robot = algos.load("chain_bc"), robot_of(task)
    family = family or PolicyNet().family
    net = {"family": family}
    if family == "shortcut":  # ReinFlow's network for robots
        net |= {"cond": (64, 16), "combine": "add"}
    env = Options(chunk=4, end_at_success=not robot)
    epochs = BC_EPOCHS.get(family, BC_EPOCHS["reflow"])
    updates = epochs.get(robot, epochs["hopper"]) * 7_800 if robot else 20_000
    config: dict[str, Any] = {"ema_start": 19 * 7_812 if robot else 10_000}  # the average blends from epoch 20 on
    if task.startswith("metaworld/"):  # ours: few demonstrations leave some numbers almost constant
        net["obs_clip"], config["norm_floor"] = 5.0, 0.02
    if robot == "humanoid" and family == "reflow":
        config["lr"] = 5e-4
    if family == "diffusion" and epochs.get(robot) == 200:
        config |= {"lr_cycle": updates}  # DPPO's falls over its training; ReinFlow's, of 3000 epochs, stays
    if size == "cpu":
        updates, config["ema_start"], net["hidden"] = 20_000, 10_000, CPU_BODY
        config |= {"lr_cycle": updates} if "lr_cycle" in config else {}
    return {
        "config": module.Config(net=PolicyNet(**net), **config), "env": env, "steps": updates,
        "epoch": 1_000 if updates == 20_000 else 2_600,
        "save_every": updates // 10, "eval": EvalOptions(every=updates // 10),
    }  # fmt: skip


def _fine_tuning(algo: str, task: str, size: str, items: int, iterations: int = 900, **config: Any) -> dict[str, Any]:
    """Shared by ReinFlow, DPPO and Gaussian PPO, which in robots differ in `items` per chunk and in their configs.

    40 simulators, 500 chunks of 4 in an iteration, four minibatches of 50,000 items, five times over.
    """
    module = algos.load(algo)
    config["time_limit"] = "terminate" if size == "published" else "bootstrap"
    if size == "cpu":
        # 10,000 environment steps and 200 small gradient steps an iteration, whatever its items are
        config |= {"duplicates": 2 if "duplicates" in config else 1, "epochs": 10}
        config |= {"batch_size": 2_500 * items * config["duplicates"] // 20}
        config |= {"net": replace(module.Config().net, hidden=CPU_BODY), "critic": Network(hidden=CPU_BODY)}
        online, epoch, iterations = OnlineOptions(envs=20, length=125), 10_000, 50
    else:
        online, epoch = OnlineOptions(envs=40, length=500), 80_000
    return {
        "config": module.Config(**config), "env": Options(chunk=4), "online": online, "steps": iterations * epoch,
        "epoch": epoch, "save_every": 5 * epoch, "eval": EvalOptions(every=5 * epoch, episodes=40, envs=20),
    }  # fmt: skip


def reinflow(task: str, size: str, family: str = "") -> dict[str, Any]:
    if not (robot := robot_of(task)):
        return _manipulation("reinflow", task, size)
    # ReinFlow's configs for D4RL (commit aed2819): 1000 iterations, humanoid's rectified flow 200, a tenth of which
    # only evaluate;
    # rates from 2e-5 to 4.5e-5 (critic 3e-4 to 6.5e-4) and back in 100 iterations after a warm-up of 10, here 90 and 9
    own = {
        "hopper": {},
        "walker2d": {"actor_lr": 4e-4, "critic_lr": 4e-3, "lr_cycle": 0, "critic_warmup": 5},
        "halfcheetah": {"actor_lr": 3e-5, "actor_lr_min": 1.5e-5, "critic_lr": 3e-4, "critic_lr_min": 1.5e-4,
                        "critic_decay": 1e-4, "critic_warmup": 10},
        "ant": {"std_min": 0.08, "std_max": 0.16},
        "humanoid": {"std_min": 0.08, "std_max": 0.16},
    }.get(robot, {})  # fmt: skip
    iterations = 180 if robot == "humanoid" and family != "shortcut" else 900
    decay = 50 if size == "cpu" else iterations
    config = {"duplicates": 10, "lr_cycle": 90, "lr_warmup": 9, "noise_decay": decay, **own}
    return _fine_tuning("reinflow", task, size, 1, iterations, **config)


def dppo(task: str, size: str) -> dict[str, Any]:
    if not robot_of(task):
        return _manipulation("dppo", task, size)
    # Ren et al. 2024, gym configs (commit cc7234a): the last 10 of 20 steps, constant rates
    return _fine_tuning("dppo", task, size, 10)


def gaussian_ppo(task: str, size: str) -> dict[str, Any]:
    if not robot_of(task):
        return _manipulation("gaussian_ppo", task, size)
    # the same skeleton and rates; as many gradient steps by visiting each chunk ten times
    return _fine_tuning("gaussian_ppo", task, size, 1, duplicates=10)


def _manipulation(algo: str, task: str, size: str) -> dict[str, Any]:
    # ours, found on a CPU: episodes end at success, rewards are at most 0, and a bonus is paid for success, so that it
    # comes soon.  Meta-World pays 0 to 10 a step, OGBench's single tasks -1 or 0.
    module = algos.load(algo)
    config: dict[str, Any] = {"batch_size": 500, "epochs": 10, "success_bonus": 10.0}
    config |= {"actor_lr": 3e-4, "critic": Network(hidden=CPU_BODY)}
    if task.startswith("metaworld/"):
        config["reward_shift"] = -10.0
    if algo == "reinflow":
        config |= {"actor_lr_min": 3e-4, "critic_lr": 1e-3, "critic_lr_min": 1e-3, "duplicates": 1, "clip": 0.02}
        config |= {"std_min": 0.08, "std_max": 0.2, "entropy_weight": 0.0}
    if algo == "dppo":
        config |= {"batch_size": 5_000}
    if size == "cpu":
        config["net"] = replace(module.Config().net, hidden=CPU_BODY)
    judges = 5 if task.startswith("ogbench/") else 20  # an arm of OGBench's takes 190 MB
    return {
        "config": module.Config(**config), "env": Options(chunk=4, end_at_success=True),
        "online": OnlineOptions(envs=20, length=50), "steps": 500_000, "epoch": 20_000, "save_every": 100_000,
        "eval": EvalOptions(every=100_000, episodes=20, envs=judges),
    }  # fmt: skip


def _dppo_tree(algo: str, size: str, utd: float, **config: Any) -> dict[str, Any]:
    # Ren et al. 2024, configs of the DPPO tree for hopper-, walker2d- and halfcheetah-v2 (commit cc7234a): chunks of 4,
    # 40 simulators, 1000 iterations of 500 chunks each, of which every tenth only evaluates; batches of 1000, rewards
    # times 0.01, a replay of 1M.  `utd`, per chunk, is their replay ratio over the batch.
    module, cpu = algos.load(algo), size == "cpu"
    chosen = {"batch_size": 250 if cpu else 1_000, "reward_scale": 0.01, **config}
    chosen["time_limit"] = "terminate" if size == "published" else "bootstrap"
    if cpu:
        chosen |= {"net": replace(module.Config().net, hidden=CPU_BODY), "critic": Network(hidden=CPU_BODY)}
    online = OnlineOptions(envs=20, length=125, utd=4 * utd) if cpu else OnlineOptions(envs=40, length=500, utd=utd)
    epoch = online.envs * online.length * 4
    return {
        "config": module.Config(**chosen), "env": Options(chunk=4), "online": online,
        "steps": (50 if cpu else 900) * epoch, "epoch": epoch, "save_every": 10 * epoch,
        "eval": EvalOptions(every=10 * epoch, episodes=40, envs=20 if cpu else 40),
    }  # fmt: skip


def dql(task: str, size: str) -> dict[str, Any]:
    # replay ratio 16, so 320 updates an iteration; the actor waits for four iterations
    return _dppo_tree("dql", size, 0.016, actor_start=1_280) if task.startswith("mujoco/") else {}


def idql(task: str, size: str) -> dict[str, Any]:
    # replay ratio 128, so 2,560 updates an iteration; 20 proposals also where it explores, as its agent has it
    return _dppo_tree("idql", size, 0.128, actor_start=10_240, explore_samples=20) if task.startswith("mujoco/") else {}


def dawr(task: str, size: str) -> dict[str, Any]:
    if task.startswith("mujoco/"):
        return _dppo_tree("dawr", size, 1.0)  # on-policy: its replay ratio of 64 is an option of its own
    return {"online": OnlineOptions(envs=16, length=50), "steps": 160_000, "epoch": 3_200, "save_every": 16_000,
            "eval": EvalOptions(every=16_000)}  # fmt: skip


def fql(task: str, size: str) -> dict[str, Any]:
    # ReinFlow's port on D4RL (arXiv:2505.22094): chunks of 4, 200k updates on the data; then, from that run, one
    # update for each of 570k chunks of one simulator.  Straight from a chain_bc run, online: --config.flow-acts 10_000.
    if not task.startswith("mujoco/"):
        return {}
    module = algos.load("fql")
    config: dict[str, Any] = {"time_limit": "terminate" if size == "published" else "bootstrap"}
    if size == "cpu":
        config |= {"net": replace(module.Config().net, hidden=CPU_BODY)}
    return {
        "config": module.Config(**config), "env": Options(chunk=4), "steps": 200_000, "save_every": 20_000,
        "eval": EvalOptions(every=20_000),
    }  # fmt: skip


PRESETS = {"sac": sac, "ppo": ppo}
SIZED = {
    "reinflow": reinflow, "dppo": dppo, "gaussian_ppo": gaussian_ppo,
    "fql": fql, "idql": idql, "dql": dql, "dawr": dawr,
}  # fmt: skip


def preset(algo: str, task: str, size: PresetName = "full", family: str = "", data: str = "") -> Train:
    """What `rheostat train ALGO TASK` runs when no option is given.

    Args: family: of chain_bc's policy, or of that which ReinFlow starts from; default chain_bc's own default; data: the
        dataset, by whose kind ReBRAC and CQL choose.
    Raises: ConfigError for a size that the algorithm does not have for the task; UnknownName.
    """
    choose("preset", size, dict.fromkeys(get_args(PresetName)))
    config = algos.load(algo).Config()

    def options(size: str) -> dict[str, Any]:
        if algo in hindsight.ALGOS:
            return hindsight.goal_conditioned(algo, task, size, data)
        if algo in offline.PRESETS:
            return offline.PRESETS[algo](task, size, data)
        if algo == "chain_bc":
            return chain_bc(task, size, family)
        if algo == "reinflow":
            return reinflow(task, size, family)
        return SIZED[algo](task, size) if algo in SIZED else PRESETS[algo](task) if algo in PRESETS else {}

    chosen = options(size)
    if size != "full" and chosen == options("full"):
        raise ConfigError(f"{algo} has no preset {size} for {task}: leave --preset out")
    if not data:
        chosen.pop("data", None)
    return Train(**{"config": config, "preset": size, **chosen})
