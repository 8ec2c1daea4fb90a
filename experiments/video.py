"""A video of a run's policy."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg
import jax
import jax.numpy as jnp
import numpy as np

import envs
from core.config import ConfigError
from core.env import HostEnv
from core.rollout import remembering
from core.types import ActOut, Array, Observation, PyTree, TimeStep
from envs import render
from envs.render import RenderError
from envs.wrappers import Chunk, Wrapper
from experiments import runs
from experiments.evaluate import checkpoint
from experiments.job import Job


class View(NamedTuple):
    """What is shown, and how."""

    episodes: int = 2
    seed: int = 3_000_000  # episode e is that of seed + e
    task: int = 0  # number of the task; 0: those of the run's evaluation, else drawn per episode
    size: int = 256  # pixels, width and height
    every: int = 4  # primitive steps per frame
    fps: int = 20  # frames per second


class Episode(NamedTuple):
    seed: int
    task: int  # 0 where it was drawn
    ret: float
    success: float
    steps: int


class Video(NamedTuple):
    path: Path
    task: str  # where the policy was played
    step: int
    seed: int  # of the run, whose policy it is
    frames: int
    episodes: list[Episode]


def told(video: Video) -> str:
    """For the terminal."""
    lines = [
        f"{'episode':>9}{'task':>6}{'return':>12}{'success':>9}{'steps':>7}",
        *(f"{e.seed:>9}{e.task or '-':>6}{e.ret:>12.2f}{e.success:>9.0f}{e.steps:>7}" for e in video.episodes),
        f"{video.path}: the policy of seed {video.seed} at step {video.step} in {video.task}, {video.frames} frames",
    ]
    return "\n".join(lines)


class Filmed(Wrapper):
    """Shows the start of an episode and each `every`-th of its steps; its last state is renewed before it is seen."""

    def __init__(self, env: HostEnv, view: View, show: Callable[[Array], None]):
        super().__init__(env)
        self.view, self.show = view, show

    def reset(self, seed, task=None) -> Observation:
        obs = self.env.reset(seed, task)
        self.show(self.render(0, self.view.size))
        return obs

    def step(self, action: Array, active: Array | None = None) -> TimeStep:
        ts = self.env.step(action, active)
        if ts.obs.step[0] > 0 and ts.obs.step[0] % self.view.every == 0:
            self.show(self.render(0, self.view.size))
        return ts


def record(
    folder: Path, out: Path | None = None, view: View | None = None, step: int | None = None, best: bool = False,
    seed_index: int = 0,
) -> Video:  # fmt: skip
    """Write an mp4 of a policy on fresh episodes.

    Args: folder: of the run; out: default in that folder; step, best: which checkpoint, default the last;
        seed_index: which of the run's seeds, from 0.
    Raises: envs.render.RenderError without a renderer, which says what to install; ConfigError.
    """
    view = view or View()
    run = runs.load(folder)
    if run.task.startswith("toy/"):
        raise ConfigError(f"{run.task} has no camera; `rheostat eval {folder}` judges the run without one")
    with render.explained():  # before anything else takes time, and before a simulator is loaded
        pass
    job, step, state = checkpoint(folder, step, best)
    seeds = job.chosen.seeds
    runs.require_seed(run, seed_index)
    out = out or Path(folder) / f"video-{step}-seed{seeds[seed_index]}.mp4"
    _check(view, out, job)
    # MJX has no camera; Gymnasium's task of the same name has the same model, observations and actions
    task = run.task.replace("mjx/", "mujoco/", 1)
    env = envs.make(task, 1, dataclasses.replace(job.chosen.env, workers=0, chunk=0))
    try:
        with Film(out, view) as film:
            env = Filmed(env, view, film.add)
            env = Chunk(env, job.spec.chunk) if job.spec.chunk else env
            policy = jax.tree.map(lambda x: x[seed_index], state.algo)
            tasks = [view.task] if view.task else list(job.chosen.eval.tasks) or [0]
            act = jax.jit(functools.partial(remembering(job.algorithm.act_eval, job.algorithm.init_carry), policy))
            begin = job.algorithm.init_carry(1)
            which = [(view.seed + e, tasks[e % len(tasks)]) for e in range(view.episodes)]
            episodes = [play(act, begin, env, *one) for one in which]
    finally:
        env.close()
    return Video(out, task, step, seeds[seed_index], film.frames, episodes)


def play(act: Callable[..., ActOut], carry: PyTree, env: HostEnv, seed: int, task: int) -> Episode:
    """One episode in the single slot of `env`."""
    key, ret, success, over = jax.random.key(seed), 0.0, 0.0, False
    obs = env.reset([seed], task or None)
    while not over:
        chosen = act(obs, carry, jax.random.fold_in(key, jnp.int32(obs.step[0])))
        ts = env.step(np.asarray(chosen.action))
        obs, carry, over = ts.obs, chosen.carry, bool(ts.terminated[0] | ts.truncated[0])
        ret, now = ret + float(ts.reward[0]), float(ts.success[0])
        success = env.spec.held(success, now)
    return Episode(seed, task, ret, success, int(ts.final_obs.step[0]))


class Film:
    """An mp4 that appears under its name when it is complete.

    The pipe is our own: imageio-ffmpeg's writer forks with a hook, which is unsafe beside JAX's threads.
    """

    def __init__(self, path: Path, view: View):
        self.path, self.part, self.view, self.frames = path, path.with_suffix(".part.mp4"), view, 0
        self._ffmpeg = None

    def __enter__(self) -> Film:
        return self

    def add(self, frame: Array) -> None:
        """Raises: RenderError without ffmpeg, or with what it complains about."""
        if self._ffmpeg is None:
            self._open()
        try:
            self._ffmpeg.stdin.write(np.ascontiguousarray(frame))
        except BrokenPipeError:
            self._finish()
        self.frames += 1

    def _open(self) -> None:
        try:
            program = imageio_ffmpeg.get_ffmpeg_exe()
        except RuntimeError as error:
            raise RenderError(f"{error} Install the package imageio-ffmpeg anew, or unset IMAGEIO_FFMPEG_EXE") from None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        size, rate = f"{self.view.size}x{self.view.size}", str(self.view.fps)
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", rate, "-i", "-"]
        # what every player takes, readable before all of it is there
        played = ["-pix_fmt", "yuv420p", "-movflags", "+faststart", str(self.part)]
        command = [program, "-y", "-loglevel", "error", *raw, *played]
        self._ffmpeg = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)

    def _finish(self) -> None:
        _, errors = self._ffmpeg.communicate()
        if self._ffmpeg.returncode:
            said = errors.decode(errors="replace").strip()
            raise RenderError(f"ffmpeg failed on {self.path} with exit code {self._ffmpeg.returncode}: {said}")

    def __exit__(self, kind, *_) -> None:
        try:
            if kind is None:
                self._finish()
                os.replace(self.part, self.path)
        finally:
            if self._ffmpeg and self._ffmpeg.poll() is None:
                self._ffmpeg.kill()
                self._ffmpeg.communicate()
            self.part.unlink(missing_ok=True)


def _check(view: View, out: Path, job: Job) -> None:
    """Raises: ConfigError."""
    if view.episodes < 1 or view.every < 1 or view.fps < 1:
        raise ConfigError(f"--episodes {view.episodes}, --every {view.every} and --fps {view.fps} must be at least 1")
    if view.size % 2 or not 16 <= view.size <= 2048:
        raise ConfigError(f"--size {view.size} must be an even number of pixels from 16 to 2048")
    if not 0 <= view.seed < 2**31 - view.episodes:
        raise ConfigError(f"--seed {view.seed} must lie between 0 and 2^31")
    if not 0 <= view.task <= job.spec.num_tasks:
        raise ConfigError(f"{job.run.task} has tasks 1 to {job.spec.num_tasks}, not {view.task}")
    if out.suffix != ".mp4":
        raise ConfigError(f"{out} must end in .mp4")
