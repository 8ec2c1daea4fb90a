"""Goal-conditioned learning in an open room and in pictures of a maze: episodes from goal to goal, and a score."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

import algos
from core import batches, dataset, loop
from core.evaluate import Evaluator
from core.rollout import JaxBatch
from core.types import Dataset, Start
from envs.jax_wrappers import wrap_jax
from envs.registry import Options
from envs.toys.base import start
from envs.toys.maze import PixelMaze, PixelState, PointMaze

SIZES = {"batch_size": 32, "hidden": (16, 16), "actor_hidden": (16, 16), "latent": 16, "rep_dim": 6}
NOISE = 0.5


class Room(PointMaze):
    """toy/pointmaze without walls inside: the way is straight."""

    MAP = ("######", "#....#", "#....#", "#....#", "#....#", "######")
    TASKS = (((1, 1), (4, 4)), ((4, 1), (1, 4)), ((2, 4), (3, 1)), ((1, 2), (4, 2)), ((4, 4), (1, 1)))


@functools.cache
def wandered(episodes: int = 200, steps: int = 50) -> Dataset:
    """From cell to cell by the shortest way with noise, another goal at each that is reached."""
    env = Room()
    free = jnp.asarray(np.argwhere(env.free), jnp.float32) + 0.5

    def anywhere(key):
        return free[jax.random.randint(key, (), 0, len(free))]

    def one(obs, key):
        keys = jax.random.split(key, 3)
        action = jnp.clip(env.guide(obs.state, obs.goal) + NOISE * jax.random.normal(keys[0], (2,)), -1, 1)
        following, ts = env.step(obs, action, keys[1])
        goal = jnp.where(ts.success > 0, anywhere(keys[2]), obs.goal)
        return following._replace(goal=goal), (obs.state, action)

    def episode(key):
        keys = jax.random.split(key, 3)
        end, (state, action) = jax.lax.scan(
            one, start(anywhere(keys[0]), anywhere(keys[1])), jax.random.split(keys[2], steps)
        )
        return jnp.concatenate([state, end.state[None]]), jnp.pad(action, ((0, 1), (0, 0)))

    state, action = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), episodes))
    rows = episodes * (steps + 1)
    nothing = np.zeros(rows, np.float32)
    return dataset.from_lengths(
        np.asarray(state).reshape(rows, 2), np.asarray(action).reshape(rows, 2), nothing, np.zeros(rows, bool),
        np.full(episodes, steps),
    )  # fmt: skip


@functools.cache
def pictured(episodes: int = 200, steps: int = 60) -> Dataset:
    """In toy/pixelmaze, from cell to cell by a shortest way, with a random move in three out of ten."""
    env = PixelMaze()
    free = jnp.asarray(np.argwhere(env.maze.free), jnp.int32)

    def anywhere(key):
        return free[jax.random.randint(key, (), 0, len(free))]

    def aimed(state, goal):
        return PixelState(state.place, goal, state.obs._replace(goal=env.render(goal)))

    def one(state, key):
        keys = jax.random.split(key, 4)
        guided = env.guide(state.obs.state, state.obs.goal)
        move = jnp.where(jax.random.bernoulli(keys[0], 0.3), jax.random.randint(keys[1], (), 0, 4), guided)
        following, ts = env.step(state, move, keys[2])
        goal = jnp.where(ts.success > 0, anywhere(keys[3]), state.goal)
        return aimed(following, goal), (state.obs.state, move.astype(jnp.int32))

    def episode(key):
        keys = jax.random.split(key, 3)
        place, goal = anywhere(keys[0]), anywhere(keys[1])
        first = PixelState(place, goal, start(env.render(place), env.render(goal)))
        end, (state, move) = jax.lax.scan(one, first, jax.random.split(keys[2], steps))
        return jnp.concatenate([state, end.obs.state[None]]), jnp.pad(move, (0, 1))

    state, move = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), episodes))
    rows = episodes * (steps + 1)
    return dataset.from_lengths(
        np.asarray(state).reshape(rows, *env.spec.obs_shape), np.asarray(move).reshape(rows),
        np.zeros(rows, np.float32), np.zeros(rows, bool), np.full(episodes, steps),
    )  # fmt: skip


RATES = {"lr": 1e-3, "tau": 0.02, "discount": 0.95, "subgoal_steps": 8, "abstraction": 2}


def learn(name: str, updates: int) -> float:
    """Success over all five tasks of the room: the goal is come by within 100 steps."""
    sizes = {"batch_size": 256, "hidden": (64, 64), "actor_hidden": (64, 64), "latent": 64}
    return score(name, updates, Room(max_steps=100), wandered(), dataset.norm(wandered(), "standard"), sizes)


def learn_from_pictures(name: str, updates: int) -> float:
    """The same of toy/pixelmaze, within its 30 steps."""
    sizes = {"batch_size": 64, "hidden": (64,), "actor_hidden": (64,), "encoder": "impala_debug"}
    sizes |= {"actor_loss": "awr", "alpha": 3.0}
    return score(name, updates, PixelMaze(), pictured(), dataset.identity_norm(1, 0), sizes)


def score(name: str, updates: int, env, data: Dataset, norm, sizes: dict) -> float:
    env = wrap_jax(env, Options(end_at_success=True))
    Config = algos.load(name).Config
    cfg = replace(Config(), **{key: x for key, x in {**sizes, **RATES}.items() if hasattr(Config(), key)})
    algorithm = algos.load(name).make(cfg, env.spec)
    run = loop.begin(algorithm, Start(norm), (0,))
    run, _ = jax.jit(loop.epoch(algorithm, updates))(run, batches.data(data, norm))
    judge = Evaluator(algorithm.act_eval, algorithm.init_carry, JaxBatch(env, 5), 1, episodes=10)
    return float(judge(run.algo, seeds=[7], task=[1, 2, 3, 4, 5]).success.mean())
