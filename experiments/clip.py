"""A clip of a run's policy."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import envs
from core.rollout import remembering
from experiments.evaluate import checkpoint


def record(folder: Path, out: Path, episodes: int = 2, seed: int = 3_000_000, size: int = 256, every: int = 4) -> int:
    """Write an mp4 of the first seed's policy on fresh episodes; returns the number of frames.

    Args: every: primitive steps per frame.
    Raises: envs.render.RenderError, which says what is missing, without a renderer.
    """
    import imageio_ffmpeg

    job, _, state = checkpoint(folder)
    first = jax.tree.map(lambda x: x[0], state.algo)
    act = jax.jit(remembering(job.algorithm.act_eval, job.algorithm.init_carry))
    env = envs.make(job.run.task, 1, job.chosen.env)
    frames = []
    try:
        for episode in range(episodes):
            obs, carry, over = env.reset([seed + episode]), job.algorithm.init_carry(1), False
            while not over:
                if obs.step[0] % every == 0:
                    frames.append(env.render(0, size))
                out_ = act(first, obs, carry, jax.random.fold_in(jax.random.key(seed), jnp.int32(obs.step[0])))
                ts = env.step(np.asarray(out_.action))
                obs, carry, over = ts.obs, out_.carry, bool(ts.terminated[0] | ts.truncated[0])
    finally:
        env.close()
    writer = imageio_ffmpeg.write_frames(str(out), (size, size), fps=20, macro_block_size=16, quality=7)
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    return len(frames)
