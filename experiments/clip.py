"""A clip of a run's policy."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import jax
import jax.numpy as jnp
import numpy as np

import envs
from core.config import ConfigError
from core.rollout import remembering
from experiments.evaluate import checkpoint


def record(folder: Path, out: Path, episodes: int = 2, seed: int = 3_000_000, size: int = 256, every: int = 4) -> int:
    """Write an mp4 of the first seed's policy on fresh episodes; returns the number of frames.

    Args: every: primitive steps per frame.
    Raises: envs.render.RenderError, which says what is missing, without a renderer; ConfigError for a jitted toy.
    """
    job, _, state = checkpoint(folder)
    if job.jitted:
        raise ConfigError(f"{job.run.task} has no camera")
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
                chosen = act(first, obs, carry, jax.random.fold_in(jax.random.key(seed), jnp.int32(obs.step[0])))
                ts = env.step(np.asarray(chosen.action))
                obs, carry, over = ts.obs, chosen.carry, bool(ts.terminated[0] | ts.truncated[0])
    finally:
        env.close()
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size}x{size}", "-r", "20", "-i", "-"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *raw, "-pix_fmt", "yuv420p", str(out)]
    subprocess.run(command, input=np.stack(frames).tobytes(), check=True)
    return len(frames)
