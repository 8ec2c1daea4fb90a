"""The records that everything passes around.

Letters for axes, everywhere: T time, B batch, S state, A action, G goal, K chain step, H chunk, E ensemble,
N transitions, M dataset rows.  An array is NumPy's on the host and JAX's under jit; `PyTree` slots are opaque
to the core.  This module imports neither, so that environment workers and the command line start quickly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any
PyTree = Any
Key = Any
Metrics = dict[str, Array]


class EnvSpec(NamedTuple):
    """What a task is, without stepping it: static and hashable."""

    name: str
    obs_shape: tuple[int, ...]  # (S,), or (H, W, C) for uint8 pixels
    action_dim: int  # A; 0 when actions are discrete
    goal_shape: tuple[int, ...] = (0,)  # (0,) when the task has no goal: zero width, never None
    num_actions: int = 0  # > 0: discrete, actions are i32[B] and nothing is scaled
    max_steps: int = 1000  # the episode is truncated here
    num_tasks: int = 1  # tasks are numbered from 1
    success: str = "last"  # an episode succeeded at its "last" step (OGBench) or at "any" step (Meta-World)
    chunk: int = 0  # H > 0: an action is a chunk f32[H, A]
    history: int = 1  # L: obs_shape is that of L frames, joined along the last axis, the newest last

    @property
    def pixels(self) -> bool:
        return len(self.obs_shape) == 3

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of one observation, as datasets keep them."""
        return (*self.obs_shape[:-1], self.obs_shape[-1] // self.history)

    def held(self, before: Array, now: Array) -> Array:
        """Success f32[...] of an episode after a step of success `now`, by the task's rule; `before`: until then."""
        return before + (now > before) * (now - before) if self.success == "any" else now

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one action: (), (A,) or (H, A)."""
        one = () if self.num_actions else (self.action_dim,)
        return (self.chunk, *one) if self.chunk else one


class Observation(NamedTuple):
    state: Array  # f32[..., S] or uint8[..., H, W, C]
    goal: Array  # like the state where goals are states, else f32[..., G]
    reward: Array  # f32[...] of the step that led here, 0 at a reset
    step: Array  # i32[...] steps since the reset


def blank_observation(spec: EnvSpec, *lead: int, xp: Any) -> Observation:
    """Zeros with leading axes `lead`, by NumPy or JAX (`xp`)."""
    state, goal = (
        xp.zeros((*lead, *shape), xp.uint8 if len(shape) == 3 else xp.float32)
        for shape in (spec.obs_shape, spec.goal_shape)
    )
    return Observation(state, goal, xp.zeros(lead, xp.float32), xp.zeros(lead, xp.int32))


class TimeStep(NamedTuple):
    obs: Observation  # act on this next; already reset where the episode ended
    final_obs: Observation  # true successor of the action, before any reset
    reward: Array  # f32[B]
    terminated: Array  # bool[B] the task ended: nothing follows
    truncated: Array  # bool[B] the clock ended it: the value of final_obs still counts
    success: Array  # f32[B] 1 where the task's goal holds after this step


class Transition(NamedTuple):
    """Leading axes [T, B] from a rollout, [B] or [B, L] from a dataset."""

    obs: Observation
    action: Array
    reward: Array
    next_obs: Observation
    terminated: Array
    truncated: Array
    extras: PyTree = ()  # whatever `act` recorded; drawn from data: "discount", from a dataset also "row"
    success: Array = ()  # f32, from a rollout


class ActOut(NamedTuple):
    action: Array  # f32[B, A] or f32[B, H, A] in [-1, 1]; i32[B] when discrete
    carry: PyTree = ()  # per-environment memory; the rollout resets it where an episode ends
    extras: PyTree = ()  # per-step record for the update


class Norm(NamedTuple):
    """Affine normalisation, (x - shift) / scale, of states and of actions."""

    state_shift: Array  # f32[S]
    state_scale: Array  # f32[S]
    action_shift: Array  # f32[A]
    action_scale: Array  # f32[A]

    def state(self, x: Array) -> Array:
        """Normalised states [..., L * S], frame by frame; pixels (uint8) pass through, an encoder scales them."""
        if x.dtype == "uint8":
            return x
        frames = x.reshape(*x.shape[:-1], -1, self.state_shift.shape[-1])
        return ((frames - self.state_shift) / self.state_scale).reshape(x.shape)

    def action(self, x: Array) -> Array:
        return (x - self.action_shift) / self.action_scale

    def raw_action(self, x: Array) -> Array:
        """The inverse of `action`."""
        return x * self.action_scale + self.action_shift


class Start(NamedTuple):
    """What a run begins with."""

    norm: Norm
    num_envs: int = 1
    parent: PyTree = None  # final state of the run that this one starts from; leading axis: seeds


class Sampler(NamedTuple):
    """Walker's alias table over R runs of neighbouring transitions, alike within each; see `core.sampling`."""

    keep: Array  # f32[R] probability of staying in the drawn run; () when all transitions are alike
    alias: Array  # i32[R] where to go otherwise; ()
    size: Array  # i32[] transitions: N of a dataset, what is filled of a replay
    first: Array = ()  # i32[R] a run's first transition
    count: Array = ()  # i32[R] how many it has


class Dataset(NamedTuple):
    """Episodes back to back; each keeps the state after its last transition, so row + 1 is always the successor.

    row          0    1    2   | 3    4            M = 5, N = 3
    state        s0   s1   s2  | s0'  s1'
    action       a0   a1   -   | a0'  -            "-": zero; no transition starts there
    first, last  0,2  0,2  0,2 | 3,4  3,4
    `row`        0, 1, 3
    """

    state: Array  # f32[M, S] or uint8[M, H, W, C] (single frames)
    action: Array  # f32[M, A], or i32[M] when discrete
    reward: Array  # f32[M] of the transition that starts here
    terminated: Array  # bool[M] that transition ended the task
    row: Array  # i32[N] rows that start a transition
    first: Array  # i32[M] first row of the episode that a row belongs to
    last: Array  # i32[M] its last row: the final successor


class Replay(NamedTuple):
    """The newest C steps of B environments: a ring in time, in which a later step overwrites the one C before it."""

    transition: Transition  # [C * B, ...] step by step, without extras and success
    added: Array  # i32[B] steps ever added, the same number for each environment


class Data(NamedTuple):
    """A dataset, or a replay, on the device with all that `sample` needs."""

    dataset: Dataset | Replay
    sampler: Sampler
    norm: Norm
    extra: PyTree = ()  # what `prepare` made


class RunState(NamedTuple):
    """The checkpoint: arrays only, restorable bit for bit.  Leading axis: seeds."""

    algo: PyTree
    rollout: PyTree  # where its environments are, online
    replay: PyTree  # what it has kept of them, off-policy
    key: Key  # typed PRNG key [seeds]
    step: Array  # i32[seeds] the clock: updates on a dataset, environment steps online
    failed: Array  # bool[seeds] its `algo` is frozen: as it was before the epoch that spoiled it
