"""The wrappers of `envs.wrappers` for environments in JAX: the same order, rules and numbers.

Random draws come from the step's key, so noisy episodes agree with the host form in law, not in value.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from core.config import choose
from core.env import JaxEnv
from core.rng import streams
from core.types import Array, EnvSpec, Key, Observation, PyTree, TimeStep
from envs.registry import Options
from envs.wrappers import NOISE, check, chunk_spec, history_spec, layers


def wrap_jax(env: JaxEnv, options: Options) -> JaxEnv:
    """Put on the wrappers that the options ask for, in the order of `envs.wrappers`.

    Raises: ConfigError.
    """
    check(options, env.spec)
    if options.max_steps:
        env = TimeLimit(env, options.max_steps)
    return layers(env, options, EndAtSuccess, ActionNoise, History, Chunk)


class Wrapper:
    """Hands on what a subclass does not change."""

    def __init__(self, env: JaxEnv, spec: EnvSpec | None = None):
        self.env, self.spec = env, spec or env.spec

    def reset(self, key: Key, task: Array) -> tuple[PyTree, Observation]:
        return self.env.reset(key, task)

    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, TimeStep]:
        return self.env.step(state, action, key)


class TimeLimit(Wrapper):
    """Truncates after fewer steps than the task's own limit."""

    def __init__(self, env: JaxEnv, max_steps: int):
        super().__init__(env, env.spec._replace(max_steps=max_steps))

    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, TimeStep]:
        state, ts = self.env.step(state, action, key)
        late = ~ts.terminated & (ts.obs.step >= self.spec.max_steps)
        return state, ts._replace(truncated=ts.truncated | late)


class EndAtSuccess(Wrapper):
    """Terminates the episode where the task's goal holds, at its last step too."""

    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, TimeStep]:
        state, ts = self.env.step(state, action, key)
        terminated = ts.terminated | (ts.success > 0)
        return state, ts._replace(terminated=terminated, truncated=ts.truncated & ~terminated)


class ActionNoise(Wrapper):
    """Adds s_t times a standard normal to the action and clips it, as `envs.wrappers.ActionNoise`."""

    def __init__(self, env: JaxEnv, sigma: float, kind: str = "iid"):
        super().__init__(env)
        self.sigma, self.scale = sigma, choose("noise kind", kind, NOISE)

    def reset(self, key: Key, task: Array) -> tuple[PyTree, Observation]:
        state, obs = self.env.reset(key, task)
        return (state, obs.step), obs

    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, TimeStep]:
        keys, (state, step) = streams(key, "noise", "env"), state
        noise = self.sigma * self.scale(step.astype(jnp.float32), jnp) * jax.random.normal(keys.noise, action.shape)
        state, ts = self.env.step(state, jnp.clip(action + noise, -1, 1), keys.env)
        return (state, ts.obs.step), ts


class History(Wrapper):
    """The last L states side by side along the last axis, with the goals of `envs.wrappers.History`."""

    def __init__(self, env: JaxEnv, length: int):
        super().__init__(env, history_spec(env.spec, length))
        self.length = length

    def reset(self, key: Key, task: Array) -> tuple[PyTree, Observation]:
        state, obs = self.env.reset(key, task)
        obs = self._told(obs, self._filled(obs.state))
        return (state, obs.state), obs

    def _filled(self, state: Array) -> Array:
        return jnp.concatenate([state] * self.length, axis=-1)

    def _told(self, obs: Observation, stack: Array) -> Observation:
        goal = self._filled(obs.goal) if self.spec.goal_shape == self.spec.obs_shape else obs.goal
        return obs._replace(state=stack, goal=goal)

    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, TimeStep]:
        state, stack = state
        state, ts = self.env.step(state, action, key)
        width = ts.final_obs.state.shape[-1]
        obs = self._told(ts.final_obs, jnp.concatenate([stack[..., width:], ts.final_obs.state], axis=-1))
        return (state, obs.state), ts._replace(obs=obs, final_obs=obs)


class Chunk(Wrapper):
    """Executes H primitive actions open loop until the episode ends, with the sums of `envs.wrappers.Chunk`."""

    def __init__(self, env: JaxEnv, size: int):
        super().__init__(env, chunk_spec(env.spec, size))

    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, TimeStep]:
        keys = jax.random.split(key, self.spec.chunk)
        state, total = self.env.step(state, action[0], keys[0])

        def sub_step(carry, inputs):
            state, total = carry
            moved, ts = self.env.step(state, *inputs)
            success = self.spec.held(total.success, ts.success)
            ts = ts._replace(reward=total.reward + ts.reward, success=success)
            over = total.terminated | total.truncated
            return jax.tree.map(lambda old, new: jnp.where(over, old, new), (state, total), (moved, ts)), None

        (state, total), _ = jax.lax.scan(sub_step, (state, total), (action[1:], keys[1:]))
        obs = total.final_obs._replace(reward=total.reward)
        return state, total._replace(obs=obs, final_obs=obs)
