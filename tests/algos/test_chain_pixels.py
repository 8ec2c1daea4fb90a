"""Policies of chunks that see images: cloned, then fine-tuned, each with augmentation, on toy/pixels (at best 10)."""

import jax
import numpy as np

import envs
from algos import chain_bc, reinflow
from core import batches, dataset, loop, online
from core.chunk_policy import PolicyNet
from core.critics import Network
from core.evaluate import Evaluator
from core.types import Start
from envs.registry import Options
from envs.toys import build

SIDE, CHUNK = 8, 2
NET = PolicyNet(hidden=(64, 64, 64), encoder="impala_debug")


def demonstrations(episodes=300, noise=0.5, seed=0):
    """Noisy answers to random pictures, one picture an episode."""
    env, rng, length = build("pixels", side=SIDE), np.random.default_rng(seed), 4
    image = np.asarray(jax.vmap(env.render)(rng.integers(0, SIDE, (episodes, 2))))
    image = np.repeat(image, length + 1, axis=0)
    action = np.clip(env.target(image) + noise * rng.standard_normal((len(image), 2)), -1, 1).astype(np.float32)
    nothing = np.zeros(len(image), np.float32)
    return dataset.from_lengths(image, action, nothing, nothing > 0, np.full(episodes, length))


def judge(algorithm, env, state):
    return Evaluator(algorithm.act_eval, algorithm.init_carry, env, 1, episodes=2)(state, seeds=[5]).ret.mean()


def test_cloned_and_fine_tuned_from_images():
    env = envs.make("toy/pixels", 32, Options(pixels=SIDE, chunk=CHUNK))
    data = demonstrations()
    norm = dataset.norm(data)
    bc = chain_bc.make(chain_bc.Config(net=NET, augment=1, ema_start=300), env.spec)
    run, on_device = loop.begin(bc, Start(norm), (0,)), batches.data(data, norm)
    untrained = judge(bc, env, run.algo)
    program = loop.compiled(bc, run, on_device, updates=300)
    for report in loop.train(program, run, 0, 600):
        cloned = report.run.algo
    start = judge(bc, env, cloned)

    cfg = reinflow.Config(
        net=NET, augment=1, batch_size=128, duplicates=1, epochs=4, actor_lr=1e-3, lr_cycle=0, critic_lr=1e-3,
        clip=0.02, critic=Network((64, 64, 64)),
    )  # fmt: skip
    tune, plan = reinflow.make(cfg, env.spec), online.Plan(32, 8, chunk=CHUNK)
    run = online.begin(tune, Start(norm, 32, cloned), (0,), env, plan)
    np.testing.assert_allclose(judge(tune, env, run.algo), start, rtol=1e-5)
    program = online.compiled(tune, run, env, plan, norm, plan.steps * 10)
    for report in loop.train(program, run, 0, plan.steps * 40):
        np.testing.assert_allclose(report.metrics["policy/first_ratio"], 1, atol=1e-4)
    end = judge(tune, env, report.run.algo)
    print(untrained, start, end)
    assert untrained < 4
    assert start > untrained + 2
    assert end > start + 0.5
