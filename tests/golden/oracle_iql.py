"""IQL, and its density-ratio weighting, in NumPy with gradients by hand, written in the layouts of the stored files.

Cases of other depths, widths and options than the stored ones, from code that shares nothing with ours.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from tests.golden.oracle import Adam, backward, forward

Layout = Literal["corl", "official", "dw"]


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


class Names:
    """What a file calls the arrays of each network's layers."""

    def __init__(self, layout: Layout):
        self.torch = layout == "corl"
        critics = ("qf.q", "q_target.q", 1) if self.torch else ("critic.Critic_", "target_critic.Critic_", 0)
        end = "" if self.torch else ".MLP_0"
        self.nets = {
            **{f"critic_{e}": f"{critics[0]}{critics[2] + e}{end}" for e in (0, 1)},
            **{f"target_{e}": f"{critics[1]}{critics[2] + e}{end}" for e in (0, 1)},
            "value": "vf.v" if self.torch else "value.MLP_0",
            "actor": "actor.net" if self.torch else "actor.MLP_0",
            "sa": "discriminator.MLP_0",
            "s": "discriminator.MLP_1",
        }
        self.log_std = "actor.log_std" if self.torch else "actor.log_stds"

    def keep(self, out: dict, prefix: str, nets: dict, log_std) -> None:
        for name, layers in nets.items():
            for i, (w, b) in enumerate(layers):
                layer = f"{self.nets[name]}.net.{2 * i}" if self.torch else f"{self.nets[name]}.Dense_{i}"
                if not self.torch and name == "actor" and i == len(layers) - 1:
                    layer = "actor.Dense_0"  # the mean's own layer, behind the MLP
                out[f"{prefix}.{layer}.{'weight' if self.torch else 'kernel'}"] = w if self.torch else w.T
                out[f"{prefix}.{layer}.bias"] = b
        if log_std is not None:
            out[f"{prefix}.{self.log_std}"] = log_std


def write(
    path: Path, layout: Layout, *, seed=0, steps=3, batch=12, state_dim=4, action_dim=2, actor_hidden=(7, 6, 5),
    critic_hidden=(9,), value_hidden=(5, 8), ratio_hidden=(6, 4), deterministic=False, kappa=0.8, beta=5.0, limit=2.0,
    tau=0.1, discount=0.9, max_steps=4, lr=3e-4, flow=0.5, kl=0.7,
) -> Path:  # fmt: skip
    """Run and write a case; `lr` is of CORL's layout only, `flow` and `kl` of the weighted one."""
    rng, names, out = np.random.default_rng(seed), Names(layout), {}

    def net(sizes):
        return [(rng.normal(size=(o, i)) / np.sqrt(i), rng.normal(size=o) * 0.3) for i, o in pairwise(sizes)]

    both = state_dim + action_dim
    nets = {f"{kind}_{e}": net((both, *critic_hidden, 1)) for kind in ("critic", "target") for e in (0, 1)}
    nets["value"] = net((state_dim, *value_hidden, 1))
    nets["actor"] = net((state_dim, *actor_hidden, action_dim))
    if layout == "dw":
        nets |= {"sa": net((both, *ratio_hidden, 1)), "s": net((state_dim, *ratio_hidden, 1))}
    log_std = None if deterministic else rng.normal(size=action_dim) * 0.3
    names.keep(out, "init", nets, log_std)
    rates = {name: 1e-4 if name in ("sa", "s") else lr for name in nets if "target" not in name}
    adams = {name: Adam(nets[name], rate) for name, rate in rates.items()}
    std_adam = None if deterministic else Adam([(log_std,)], lr)

    def q_of(name, s, a):
        q, inputs = forward(nets[name], np.concatenate([s, a], 1))
        return q[:, 0], inputs

    def learn(name, inputs, slope):
        grads, _ = backward(nets[name], inputs, slope[:, None] if slope.ndim == 1 else slope)
        nets[name] = adams[name].step(nets[name], grads)

    batches = {"s": rng.normal(size=(steps, batch, state_dim)), "ns": rng.normal(size=(steps, batch, state_dim))}
    batches |= {"a": rng.uniform(-1, 1, (steps, batch, action_dim)), "r": rng.normal(size=(steps, batch, 1))}
    batches["d"] = (rng.random((steps, batch, 1)) < 0.3) * 1.0
    normal = rng.uniform(size=(steps, batch))
    for t in range(steps):
        s, a, ns = (batches[key][t] for key in ("s", "a", "ns"))
        r, ended = batches["r"][t, :, 0], batches["d"][t, :, 0]
        told, w = {}, np.full(batch, 1 / batch)
        if layout == "dw":
            (f_sa, sa_in), (f_s, s_in) = q_of("sa", s, a), forward(nets["s"], s)
            f_s, (after, after_in) = f_s[:, 0], forward(nets["s"], ns)
            after, clipped = after[:, 0], (np.clip(f_sa, -1.2, 1.2), np.clip(f_s, -1.2, 1.2))
            w = softmax(sum(clipped))
        # --- value ---
        q = np.minimum(*(q_of(f"target_{e}", s, a)[0] for e in (0, 1)))
        v, inputs = forward(nets["value"], s)
        v, u = v[:, 0], q - v[:, 0]
        asymmetric = np.where(u < 0, 1 - kappa, kappa)
        told |= {"value_loss": (w * asymmetric * u**2).sum(), "v": v.mean()}
        next_v = forward(nets["value"], ns)[0][:, 0]
        learn("value", inputs, -2 * w * asymmetric * u)
        if layout != "corl":
            u = q - forward(nets["value"], s)[0][:, 0]
            next_v = forward(nets["value"], ns)[0][:, 0]
        # --- actor ---
        rate = lr * (1 + np.cos(np.pi * t / max_steps)) / 2
        told |= {"actor_lr_before": rate, "adv": u, "adv_old_v": u, "next_v_old": next_v}
        raw, inputs = forward(nets["actor"], s)
        mean, exp_a = np.tanh(raw), np.minimum(np.exp(beta * u), limit)
        told["exp_a"], scale = exp_a, (w * exp_a)[:, None]
        std = 1.0 if deterministic else np.exp(log_std)
        z = (mean - a) / std
        if deterministic:
            cost, slope = (z**2).sum(1), 2 * scale * z
        else:
            cost = (0.5 * z**2 + log_std + 0.5 * np.log(2 * np.pi)).sum(1)
            slope = scale * z / std
            std_adam.lr = rate
            ((log_std,),) = std_adam.step([(log_std,)], [((scale * (1 - z**2)).sum(0),)])
        told["actor_loss"] = (scale[:, 0] * cost).sum()
        adams["actor"].lr = rate
        learn("actor", inputs, slope * (1 - mean**2))
        # --- critics and targets ---
        target, loss = r + discount * (1 - ended) * next_v, 0.0
        factor = 0.5 if layout == "corl" else 1.0
        for e in (0, 1):
            q, inputs = q_of(f"critic_{e}", s, a)
            told[f"q{e + 1}"] = q.mean()
            loss += factor * (w * (q - target) ** 2).sum()
            learn(f"critic_{e}", inputs, 2 * factor * w * (q - target))
        told |= {"q_loss": loss, "critic_loss": loss}
        for e in (0, 1):
            nets[f"target_{e}"] = [
                tuple(tau * o + (1 - tau) * p for o, p in zip(online, old, strict=True))
                for online, old in zip(nets[f"critic_{e}"], nets[f"target_{e}"], strict=True)
            ]
        # --- density ratio ---
        if layout == "dw":
            gap = np.exp(f_sa + f_s) - np.exp(after)
            log_w = np.log(w)
            terms = (w * normal[t]).sum(), (gap**2).mean(), (w * log_w).sum()
            slope = w * (-normal[t] + kl * log_w)
            slope = slope - w * slope.sum()
            moved = 2 * flow * gap / batch
            now = moved * np.exp(f_sa + f_s)
            learn("sa", sa_in, slope * (np.abs(f_sa) < 1.2) + now)
            here, _ = backward(nets["s"], s_in, (slope * (np.abs(f_s) < 1.2) + now)[:, None])
            there, _ = backward(nets["s"], after_in, (-moved * np.exp(after))[:, None])
            summed = [tuple(x + y for x, y in zip(*pair, strict=True)) for pair in zip(here, there, strict=True)]
            nets["s"] = adams["s"].step(nets["s"], summed)
            told |= {
                "weights": w, "weight_max": w.max(), "weight_min": w.min(), "weight_mean": w.mean(),
                "norm_ratio": w.mean(), "sa_logits": f_sa, "s_logits": f_s, "sa_ratios": f_sa.mean(),
                "s_ratios": f_s.mean(), "next_s_ratios": after.mean(), "sa_clipped_ratios": clipped[0].mean(),
                "s_clipped_ratios": clipped[1].mean(), "clipped_ratio": sum(clipped).mean(),
                "discriminator_reward": normal[t].mean(), "reward_loss": -terms[0], "flow_consistency_loss": terms[1],
                "kl_penalty_loss": terms[2], "discriminator_loss": -terms[0] + flow * terms[1] + kl * terms[2],
            }  # fmt: skip
        kept = {
            "corl": ("next_v_old", "adv_old_v", "actor_lr_before", "value_loss", "q_loss", "actor_loss"),
            "official": ("actor_loss", "adv", "critic_loss", "q1", "q2", "v", "value_loss"),
        }.get(layout, [key for key in told if key not in ("next_v_old", "adv_old_v", "actor_lr_before", "q_loss")])
        out |= {f"step{t}.{key}": np.asarray(told[key]) for key in kept}
        names.keep(out, f"step{t}", nets, log_std)
        if layout != "corl":
            fields = {"observations": s, "actions": a, "rewards": r, "masks": 1 - ended, "next_observations": ns}
            fields["normalized_rewards"] = normal[t]
            out |= {f"step{t}.batch.{key}": value for key, value in fields.items()}
    hyper = {"discount": discount, "tau": tau, "max_steps": max_steps}
    if layout == "corl":
        out |= {f"batch.{key}": value for key, value in batches.items()}
        hyper |= {"iql_tau": kappa, "beta": beta, "deterministic": deterministic, "hidden": 3, "lr": lr}
        hyper |= {"exp_adv_max": limit, "log_std_min": -20.0, "log_std_max": 2.0}
    else:
        hyper |= {"hidden_dims": (3, 3), "expectile": kappa, "temperature": beta, "exp_a_clip": limit}
        hyper |= {"flow": flow, "kl": kl} if layout == "dw" else {}
    np.savez(path, **out, **{f"hp.{key}": np.asarray(value) for key, value in hyper.items()})
    return path
