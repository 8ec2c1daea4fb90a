"""What the tests of all host families share: recording episodes and comparing them bit for bit."""

import numpy as np


def leaves(tree):
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, tuple) else [tree]


def record(env, seed, steps, task=None, disturb=None):
    """Reset, then `steps` random steps (the same ones at each call).

    `disturb`: a seed; NumPy's global generator is reseeded with it and drawn from around every step.
    """
    actions = np.random.default_rng(7).uniform(-1, 1, (steps, env.num_envs, env.spec.action_dim)).astype(np.float32)
    if disturb is not None:
        np.random.seed(disturb)  # noqa: NPY002
    trace = [env.reset(seed, task)]
    for action in actions:
        if disturb is not None:
            np.random.uniform(size=3)  # noqa: NPY002
        trace.append(env.step(action))
    return trace


def same(a, b):
    pairs = [(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(leaves(p), leaves(q), strict=True)]
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


def check_types(env, obs, ts):
    """Shapes and dtypes are those of the spec."""
    count, spec = env.num_envs, env.spec
    for o in (obs, ts.obs, ts.final_obs):
        assert o.state.shape == (count, *spec.obs_shape)
        assert o.goal.shape == (count, *spec.goal_shape)
        assert o.state.dtype == (np.uint8 if spec.pixels else np.float32)
        assert o.goal.dtype == (np.uint8 if len(spec.goal_shape) == 3 else np.float32)
        assert (o.reward.shape, o.reward.dtype, o.step.shape, o.step.dtype) == ((count,), "f4", (count,), "i4")
        assert np.isfinite(o.state).all()
    assert [(x.shape, str(x.dtype)) for x in ts[2:]] == [
        ((count,), kind) for kind in ("float32", "bool", "bool", "float32")
    ]
