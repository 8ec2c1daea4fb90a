"""What learners of chunk policies share about values: networks of critics, and transitions as those read them.

Axes: B batch, S state, H steps of a chunk, A action, E critics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import flax.linen as nn

from core.chunk_policy import Policy
from core.config import choose
from core.losses import ensemble_mse
from core.networks import MLP, Net, ResidualMLP, ensemble
from core.rng import streams
from core.types import Array, EnvSpec, Key, Metrics, Norm, Observation, PyTree, Transition

TimeLimit = Literal["bootstrap", "terminate"]


@dataclass(frozen=True)
class Network:
    """The defaults are the critics of DPPO (arXiv:2409.00588)."""

    hidden: tuple[int, ...] = (256, 256, 256)
    activation: str = "mish"
    residual: bool = True  # hidden sizes are then equal and odd in number
    norm: Literal["none", "before", "after"] = "none"  # LayerNorm beside activations; residual: inside the blocks

    def module(self) -> nn.Module:
        if self.residual:
            return ResidualMLP((*self.hidden, 1), self.activation, norm=self.norm != "none")
        return MLP((*self.hidden, 1), self.activation, norm=self.norm)


def of_chunks(network: Network, size: int = 2) -> Net:
    """E = `size` critics (params, s f32[B, S], chunk f32[B, H, A]) -> f32[E, B]; parameters lead with E."""
    critics = ensemble(network.module(), size)

    def flat(chunk: Array) -> Array:
        return chunk.reshape(len(chunk), -1)

    return Net(
        lambda key, state, chunk: critics.init(key, state, flat(chunk)),
        lambda params, state, chunk: critics.apply(params, state, flat(chunk))[..., 0],
    )


def of_states(network: Network) -> Net:
    """One value (params, s f32[..., S]) -> f32[...]."""
    module = network.module()
    return Net(module.init, lambda params, state: module.apply(params, state)[..., 0])


def of_observations(network: Network, given: Policy) -> Net:
    """One value (params, norm, obs) -> f32[...] of what a policy observes; images by an encoder of its own.

    `init` takes (key, EnvSpec).  Params: {"value", "encoder" (images)}.
    """
    value = of_states(network)

    def init(key: Key, spec: EnvSpec) -> PyTree:
        keys = streams(key, "value", "encoder")
        state, params = given.encoded(keys.encoder, spec)
        return {**params, "value": value.init(keys.value, state)}

    def apply(params: PyTree, norm: Norm, obs: Observation) -> Array:
        return value.apply(params["value"], given.read(params, norm, obs))

    return Net(init, apply)


class Batch(NamedTuple):
    """Transitions as critics and chunk policies read them."""

    state: Array  # f32[B, S]
    action: Array  # f32[B, H, A]
    reward: Array  # f32[B] scaled
    next_state: Array  # f32[B, S]
    terminated: Array  # bool[B] as `value_ends` says


def value_ends(t: Transition, time_limit: str) -> Array:
    """bool[...]: nothing is worth anything after this; by "terminate", which many published runs used, a cut too."""
    ends = {"bootstrap": t.terminated, "terminate": t.terminated | t.truncated}
    return choose("time limit", time_limit, ends)


def to_batch(t: Transition, given: Policy, params: PyTree, norm: Norm, scale: float, time_limit: str) -> Batch:
    """Transitions as a policy with these parameters reads them; scale: of the rewards."""
    state, after = (given.read(params, norm, obs) for obs in (t.obs, t.next_obs))
    return Batch(state, given.chunk(norm, t.action), scale * t.reward, after, value_ends(t, time_limit))


def q_loss(critic_params: PyTree, target: Array, batch: Batch, q: Net) -> tuple[Array, Metrics]:
    """Sum over members of their mean squared errors to targets f32[B] -> (f32[], metrics)."""
    value = q.apply(critic_params, batch.state, batch.action)  # f32[E, B]
    loss = ensemble_mse(value, target)
    return loss, {"critic/loss": loss, "critic/q": value.mean(), "critic/target": target.mean()}
