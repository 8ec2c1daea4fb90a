"""TD3+BC in NumPy with gradients by hand, written to files in the layout of `corl_td3bc.npz`.

Cases of other depth, width, bounds and delay than the stored one, from code that shares nothing with ours.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np


def forward(layers, x):
    """Output of Linear-ReLU-...-Linear, and the input of every layer for `backward`."""
    inputs = []
    for i, (w, b) in enumerate(layers):
        inputs.append(x)
        x = x @ w.T + b
        x = np.maximum(x, 0) if i < len(layers) - 1 else x
    return x, inputs


def backward(layers, inputs, slope):
    """Gradients of all layers, and of the input, for the slope [B, out] of the loss at the output."""
    grads = []
    for i in reversed(range(len(layers))):
        grads.append((slope.T @ inputs[i], slope.sum(0)))
        slope = slope @ layers[i][0]
        slope = slope * (inputs[i] > 0) if i else slope
    return grads[::-1], slope


class Adam:
    def __init__(self, layers, lr):
        self.lr, self.t = lr, 0
        self.m = [[np.zeros_like(p) for p in layer] for layer in layers]
        self.v = [[np.zeros_like(p) for p in layer] for layer in layers]

    def step(self, layers, grads):
        self.t += 1
        out = []
        for layer, grad, m, v in zip(layers, grads, self.m, self.v, strict=True):
            new = []
            for i, (p, g) in enumerate(zip(layer, grad, strict=True)):
                m[i] = 0.9 * m[i] + 0.1 * g
                v[i] = 0.999 * v[i] + 0.001 * g * g
                m_hat, v_hat = m[i] / (1 - 0.9**self.t), v[i] / (1 - 0.999**self.t)
                new.append(p - self.lr * m_hat / (np.sqrt(v_hat) + 1e-8))
            out.append(tuple(new))
        return out


def write(
    path: Path, *, seed=0, steps=4, batch=16, state_dim=5, action_dim=2, actor_hidden=(12,), critic_hidden=(10, 9, 8),
    max_action=2.0, period=3, alpha=1.5, tau=0.1, lr=1e-3, discount=0.9, noise=0.4, clip=0.5, noise_unit=1.0,
) -> Path:  # fmt: skip
    """Run and write a case; `noise` and `clip` are the trainer's absolute values, stored as multiples of noise_unit."""
    rng = np.random.default_rng(seed)

    def net(sizes):
        pairs = pairwise(sizes)
        return [(rng.normal(size=(o, i)) / np.sqrt(i), rng.normal(size=o) * 0.3) for i, o in pairs]

    actor_sizes, critic_sizes = (state_dim, *actor_hidden, action_dim), (state_dim + action_dim, *critic_hidden, 1)
    nets = {name: net(actor_sizes if "actor" in name else critic_sizes) for name in (
        "actor", "critic_1", "critic_2", "actor_target", "critic_1_target", "critic_2_target")}  # fmt: skip
    batches = {
        "s": rng.normal(size=(steps, batch, state_dim)),
        "a": rng.uniform(-max_action, max_action, (steps, batch, action_dim)),
        "r": rng.normal(size=(steps, batch, 1)),
        "ns": rng.normal(size=(steps, batch, state_dim)),
        "d": (rng.random((steps, batch, 1)) < 0.3) * 1.0,
    }
    eps = rng.normal(size=(steps, batch, action_dim))
    out = {f"batch.{key}": value for key, value in batches.items()} | {"noise_std_normal": eps}
    hyper = dict(alpha=alpha, max_action=max_action, hidden=7, discount=discount, tau=tau, lr=lr, policy_freq=period)
    hyper |= dict(policy_noise=noise / noise_unit, noise_clip=clip / noise_unit)
    out |= {f"hp.{key}": np.asarray(value) for key, value in hyper.items()}

    def keep(prefix):
        for name, layers in nets.items():
            for i, (w, b) in enumerate(layers):
                out[f"{prefix}.{name}.net.{2 * i}.weight"], out[f"{prefix}.{name}.net.{2 * i}.bias"] = w, b

    keep("init")
    adams = {name: Adam(nets[name], lr) for name in ("actor", "critic_1", "critic_2")}
    for t in range(steps):
        s, a, r, ns, d = (batches[key][t] for key in ("s", "a", "r", "ns", "d"))
        smooth = np.clip(noise * eps[t], -clip, clip)
        next_a = np.clip(max_action * np.tanh(forward(nets["actor_target"], ns)[0]) + smooth, -max_action, max_action)
        x = np.concatenate([ns, next_a], 1)
        low = np.minimum(forward(nets["critic_1_target"], x)[0], forward(nets["critic_2_target"], x)[0])
        target = out[f"step{t}.target_q"] = r + discount * (1 - d) * low
        loss = 0.0
        for name in ("critic_1", "critic_2"):
            q, inputs = forward(nets[name], np.concatenate([s, a], 1))
            loss += ((q - target) ** 2).mean()
            grads, _ = backward(nets[name], inputs, 2 * (q - target) / batch)
            nets[name] = adams[name].step(nets[name], grads)
        out[f"step{t}.critic_loss"] = np.asarray(loss)
        if (t + 1) % period == 0:
            raw, inputs = forward(nets["actor"], s)
            pi = max_action * np.tanh(raw)
            q, q_inputs = forward(nets["critic_1"], np.concatenate([s, pi], 1))
            scale = alpha / np.abs(q).mean()
            out[f"step{t}.actor_loss"] = np.asarray(-scale * q.mean() + ((pi - a) ** 2).mean())
            _, slope = backward(nets["critic_1"], q_inputs, np.full_like(q, -scale / batch))
            slope = slope[:, state_dim:] + 2 * (pi - a) / pi.size
            grads, _ = backward(nets["actor"], inputs, slope * max_action * (1 - np.tanh(raw) ** 2))
            nets["actor"] = adams["actor"].step(nets["actor"], grads)
            for name in adams:
                nets[f"{name}_target"] = [
                    tuple(tau * o + (1 - tau) * p for o, p in zip(online, old, strict=True))
                    for online, old in zip(nets[name], nets[f"{name}_target"], strict=True)
                ]
        keep(f"step{t}")
    np.savez(path, **out)
    return path
