"""CQL and ReBRAC in NumPy with gradients by hand, written to files in the layouts of `corl_cql*` and `corl_rebrac*`.

Cases of other depths, widths and options than the stored ones, from code that shares nothing with ours.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from tests.golden.oracle import Adam, backward, forward

EPS = 1e-6  # of a LayerNorm


def uniform_net(rng, sizes):
    """Torch's layers (w [out, in], b), exact in float32."""
    pairs = pairwise(sizes)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32).astype(np.float64)  # noqa: E731
    return [(draw(o, i) / 2 ** np.round(np.log2(i) / 2), draw(o) / 4) for i, o in pairs]


class Policy:
    """The tanh-Gaussian of an MLP, and its gradient for one set of draws."""

    def __init__(self, layers, line):
        self.layers, self.line = layers, line

    def at(self, obs):
        """(mean, log_std, what the gradient needs)."""
        out, inputs = forward(self.layers, obs)
        mean, raw = np.split(out, 2, axis=-1)
        free = self.line[0] * raw + self.line[1]
        return mean, np.clip(free, -20, 2), (inputs, raw, (free > -20) & (free < 2))

    def draw(self, obs, eps):
        """(action, log-density) for eps [..., A] with the batch first."""
        mean, log_std, _ = self.at(obs)
        if eps.ndim == 3:
            mean, log_std = mean[:, None], log_std[:, None]
        u = mean + np.exp(log_std) * eps
        slope = 2 * (np.log(2) - np.logaddexp(u, -u))  # log of 1 / cosh(u)^2
        return np.tanh(u), (-(eps**2) / 2 - np.log(2 * np.pi) / 2 - log_std - slope).sum(-1)

    def gradient(self, obs, eps, alpha, slope):
        """Of mean(alpha log pi) + sum(slope * action), for (layers, line)."""
        mean, log_std, (inputs, raw, free) = self.at(obs)
        action, share = np.tanh(mean + np.exp(log_std) * eps), alpha / len(obs)
        at_u = share * 2 * action + slope * (1 - action**2)
        at_log_std = (at_u * np.exp(log_std) * eps - share) * free
        grads, _ = backward(self.layers, inputs, np.concatenate([at_u, self.line[0] * at_log_std], -1))
        return grads, ((at_log_std * raw).sum(), at_log_std.sum())


def write_cql(
    path: Path, *, seed=0, steps=2, batch=6, state_dim=4, action_dim=2, samples=3, actor_hidden=(7, 6),
    critic_hidden=((8,), (6, 5, 4)), policy_lr=1e-3, qf_lr=2e-3, discount=0.9, tau=0.1, weight=5.0, temp=1.0,
    target_gap=-1.0, lagrange=False, max_backup=False, backup_entropy=False, importance=True, learn_alpha=True,
    multiplier=1.0, clip=(-np.inf, np.inf),
) -> Path:  # fmt: skip
    """Run and write a case; critic_hidden: of either critic."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=(steps, *shape))  # noqa: E731
    data = {"s": normal(batch, state_dim), "a": np.tanh(normal(batch, action_dim)), "r": normal(batch, 1)}
    data |= {"ns": normal(batch, state_dim), "d": (rng.random((steps, batch, 1)) < 0.3) * 1.0}
    many = (batch, samples, action_dim)
    draws = {
        "eps_new": normal(batch, action_dim),
        "eps_target_next": normal(*many) if max_backup else normal(batch, action_dim),
        "random_actions": rng.uniform(-1, 1, (steps, *many)), "eps_cur": normal(*many), "eps_next": normal(*many),
    }  # fmt: skip
    policy = Policy(uniform_net(rng, (state_dim, *actor_hidden, 2 * action_dim)), np.array([1.125, -0.75]))
    critics = [uniform_net(rng, (state_dim + action_dim, *hidden, 1)) for hidden in critic_hidden]
    targets = [uniform_net(rng, (state_dim + action_dim, *hidden, 1)) for hidden in critic_hidden]
    log_alpha, log_alpha_prime = np.array(0.25), np.array(1.0)
    out = {f"batch.{key}": value for key, value in data.items()}
    hyper = dict(
        discount=discount, alpha_multiplier=multiplier, use_automatic_entropy_tuning=learn_alpha, policy_lr=policy_lr,
        backup_entropy=backup_entropy, qf_lr=qf_lr, soft_target_update_rate=tau, bc_steps=0, target_update_period=1,
        cql_n_actions=samples, cql_importance_sample=importance, cql_lagrange=lagrange, cql_temp=temp, cql_alpha=weight,
        cql_target_action_gap=target_gap, cql_max_target_backup=max_backup, cql_clip_diff_min=clip[0],
        cql_clip_diff_max=clip[1], target_entropy=-float(action_dim), hidden=7, n_hidden_q=5,
    )  # fmt: skip
    out |= {f"hp.{key}": np.asarray(value) for key, value in hyper.items()}

    def keep(prefix):
        nets = {"actor.base_network": policy.layers}
        for e in range(2):
            nets |= {f"critic_{e + 1}.network": critics[e], f"target_critic_{e + 1}.network": targets[e]}
        for name, layers in nets.items():
            for i, (w, b) in enumerate(layers):
                out[f"{prefix}.{name}.{2 * i}.weight"], out[f"{prefix}.{name}.{2 * i}.bias"] = w, b
        for i, name in enumerate(("multiplier", "offset")):
            out[f"{prefix}.actor.log_std_{name}.constant"] = np.asarray(policy.line[i])
        out[f"{prefix}.log_alpha"], out[f"{prefix}.log_alpha_prime"] = log_alpha, log_alpha_prime

    keep("init")
    pack = lambda *values: [tuple(np.asarray(v, float) for v in values)]  # noqa: E731
    adams = [Adam(net, qf_lr) for net in critics]
    actor_adam, line_adam = Adam(policy.layers, policy_lr), Adam(pack(*policy.line), policy_lr)
    alpha_adam, prime_adam = Adam(pack(log_alpha), policy_lr), Adam(pack(log_alpha_prime), qf_lr)
    for t in range(steps):
        s, a, r, ns, d = (data[key][t] for key in ("s", "a", "r", "ns", "d"))
        eps = {key: value[t] for key, value in draws.items()}
        out |= {f"step{t}.{key}": value for key, value in eps.items()}
        log = {}
        alpha = multiplier * np.exp(log_alpha)
        # the policy's loss, of the critics as they are
        action, log_pi = policy.draw(s, eps["eps_new"])
        runs = [forward(net, np.concatenate([s, action], 1)) for net in critics]
        q = np.stack([run[0][:, 0] for run in runs])
        log |= {"log_pi": log_pi.mean(), "policy_loss": (alpha * log_pi - q.min(0)).mean(), "alpha": alpha}
        log["alpha_loss"] = -log_alpha * (log_pi.mean() - action_dim) if learn_alpha else 0.0
        slope = 0
        for e in range(2):
            chosen = (q.argmin(0) == e)[:, None] / -batch
            slope = slope + backward(critics[e], runs[e][1], chosen)[1][:, state_dim:]
        grads, line_grads = policy.gradient(s, eps["eps_new"], alpha, slope)
        # targets
        next_action, next_log_pi = policy.draw(ns, eps["eps_target_next"])
        rows = next_action.reshape(batch, -1, action_dim)
        x = np.concatenate([np.repeat(ns[:, None], rows.shape[1], 1), rows], -1)
        low = np.min([forward(net, x.reshape(-1, x.shape[-1]))[0].reshape(batch, -1) for net in targets], axis=0)
        best = low.argmax(1)
        value, entropy = low[np.arange(batch), best], next_log_pi.reshape(batch, -1)[np.arange(batch), best]
        value = value - alpha * entropy if backup_entropy else value
        y = r[:, 0] + discount * (1 - d[:, 0]) * value
        log["average_target_q"] = value.mean()
        # critics
        now, log_now = policy.draw(s, eps["eps_cur"])
        after, log_after = policy.draw(ns, eps["eps_next"])
        actions = np.concatenate([a[:, None], eps["random_actions"], now, after], 1)
        x = np.concatenate([np.repeat(s[:, None], actions.shape[1], 1), actions], -1)
        density = np.concatenate([np.full((batch, samples), action_dim * np.log(0.5)), log_now, log_after], 1)
        prime = min(np.exp(log_alpha_prime), 1e6) if lagrange else 1.0
        penalties, new_critics = [], []
        for e in range(2):
            flat, inputs = forward(critics[e], x.reshape(-1, x.shape[-1]))
            every = flat.reshape(batch, -1)
            data_q, columns = every[:, 0], every[:, 1:]
            cat = columns - density if importance else every
            powers = np.exp((cat - cat.max(1, keepdims=True)) / temp)
            free = temp * np.log(powers.sum(1)) + cat.max(1) - data_q
            gap = np.clip(free, *clip).mean()
            penalties.append(prime * weight * (gap - target_gap) if lagrange else weight * gap)
            share = prime * weight * ((free > clip[0]) & (free < clip[1]))[:, None] / batch
            soft = share * powers / powers.sum(1, keepdims=True)
            at = np.concatenate([np.zeros((batch, 1)), soft], 1) if importance else soft
            at[:, :1] += 2 * (data_q - y)[:, None] / batch - share
            new_critics.append(adams[e].step(critics[e], backward(critics[e], inputs, at.reshape(-1, 1))[0]))
            parts = np.split(columns, 3, axis=1)
            log |= {
                f"qf{e + 1}_loss": ((data_q - y) ** 2).mean(), f"average_qf{e + 1}": data_q.mean(),
                f"cql_std_q{e + 1}": every.std(1, ddof=1).mean(), f"cql_qf{e + 1}_diff": gap,
                f"cql_min_qf{e + 1}_loss": penalties[-1], f"cql_q{e + 1}_rand": parts[0].mean(),
                f"cql_q{e + 1}_current_actions": parts[1].mean(), f"cql_q{e + 1}_next_actions": parts[2].mean(),
            }  # fmt: skip
        log |= {"alpha_prime": prime if lagrange else 0.0, "alpha_prime_loss": -np.mean(penalties) if lagrange else 0.0}
        # all steps at once
        if learn_alpha:
            log_alpha = alpha_adam.step(pack(log_alpha), pack(-(log_pi.mean() - action_dim)))[0][0]
        if lagrange:
            log_alpha_prime = prime_adam.step(pack(log_alpha_prime), pack(-np.mean(penalties)))[0][0]
        line = np.array(line_adam.step(pack(*policy.line), pack(*line_grads))[0])
        policy, critics = Policy(actor_adam.step(policy.layers, grads), line), new_critics
        targets = [
            [tuple(tau * o + (1 - tau) * p for o, p in zip(*pair, strict=True)) for pair in zip(*nets, strict=True)]
            for nets in zip(critics, targets, strict=True)
        ]
        out |= {f"step{t}.{key}": np.asarray(value, float) for key, value in log.items()}
        keep(f"step{t}")
    np.savez(path, **out)
    return path


def normed_forward(layers, x):
    """Linear-ReLU-LayerNorm-...-Linear of flax's layers (w [in, out], b, scale, shift); without a LayerNorm (w, b)."""
    kept = []
    for i, (w, b, *norm) in enumerate(layers):
        before, x = x, x @ w + b
        active = x > 0
        hat = std = None
        if i < len(layers) - 1:
            x = x * active
        if norm:
            std = np.sqrt(x.var(-1, keepdims=True) + EPS)
            hat = (x - x.mean(-1, keepdims=True)) / std
            x = hat * norm[0] + norm[1]
        kept.append((before, active, hat, std))
    return x, kept


def normed_backward(layers, kept, slope):
    """Gradients of all layers, and of the input, for the slope [B, out] of the loss at the output."""
    grads = []
    for i in reversed(range(len(layers))):
        (w, _, *norm), (before, active, hat, std) = layers[i], kept[i]
        tail = ()
        if norm:
            tail = ((slope * hat).sum(0), slope.sum(0))
            g = slope * norm[0]
            slope = (g - g.mean(-1, keepdims=True) - hat * (g * hat).mean(-1, keepdims=True)) / std
        if i < len(layers) - 1:
            slope = slope * active
        grads.append((before.T @ slope, slope.sum(0), *tail))
        slope = slope @ w.T
    return grads[::-1], slope


def write_rebrac(
    path: Path, *, seed=0, steps=4, batch=8, state_dim=4, action_dim=2, actor_hidden=(7, 6), critic_hidden=(5,),
    actor_ln=False, critic_ln=True, actor_bc=0.3, critic_bc=0.7, discount=0.9, tau=0.1, lr=1e-3, noise=0.3, clip=0.4,
    normalize_q=True,
) -> Path:  # fmt: skip
    """Run and write a case."""
    rng = np.random.default_rng(seed)
    exact = lambda x: np.asarray(x).astype(np.float32).astype(np.float64)  # noqa: E731

    def net(sizes, ln):
        layers = [(w.T, b) for w, b in uniform_net(rng, sizes)]
        hidden = [(w, b, exact(1 + 0.2 * rng.normal(size=b.shape)), exact(0.2 * rng.normal(size=b.shape)))
                  for w, b in layers[:-1]]  # fmt: skip
        return [*hidden, layers[-1]] if ln else layers

    actor, actor_target = (net((state_dim, *actor_hidden, action_dim), actor_ln) for _ in range(2))
    sizes = (state_dim + action_dim, *critic_hidden, 1)
    critics, critic_targets = ([net(sizes, critic_ln) for _ in range(2)] for _ in range(2))
    hyper = dict(
        hidden=9, n_hiddens=9, actor_bc_coef=actor_bc, critic_bc_coef=critic_bc, gamma=discount, tau=tau, lr=lr,
        normalize_q=normalize_q, policy_noise=noise, noise_clip=clip, actor_ln=actor_ln, critic_ln=critic_ln,
        layernorm_eps=EPS,
    )  # fmt: skip
    out = {f"hp.{key}": np.asarray(value) for key, value in hyper.items()}

    def keep(prefix):
        stacked = [[tuple(np.stack(x) for x in zip(*pair, strict=True)) for pair in zip(*nets, strict=True)]
                   for nets in (critics, critic_targets)]  # fmt: skip
        nets = {"actor.params": actor, "actor_target.params": actor_target}
        nets |= {f"{name}.params.VmapCritic_0": x
                 for name, x in zip(("critic", "critic_target"), stacked, strict=True)}  # fmt: skip
        for name, layers in nets.items():
            for i, layer in enumerate(layers):
                names = ("Dense", "kernel"), ("Dense", "bias"), ("LayerNorm", "scale"), ("LayerNorm", "bias")
                for (module, leaf), value in zip(names, layer, strict=False):
                    out[f"{prefix}.{name}.{module}_{i}.{leaf}"] = value

    def polyak(target, online):
        return [tuple(tau * o + (1 - tau) * p for o, p in zip(*pair, strict=True))
                for pair in zip(online, target, strict=True)]  # fmt: skip

    keep("init")
    actor_adam, adams = Adam(actor, lr), [Adam(critic, lr) for critic in critics]
    for t in range(steps):
        s, ns = rng.normal(size=(2, batch, state_dim))
        a, na = rng.uniform(-1, 1, (2, batch, action_dim))
        r, d, eps = rng.normal(size=batch), (rng.random(batch) < 0.3) * 1.0, rng.normal(size=(batch, action_dim))
        given = {"states": s, "actions": a, "rewards": r, "next_states": ns, "next_actions": na, "dones": d}
        out |= {f"step{t}.batch.{key}": value for key, value in given.items()} | {f"step{t}.noise_std_normal": eps}
        smooth = np.tanh(normed_forward(actor_target, ns)[0]) + np.clip(noise * eps, -clip, clip)
        smooth = np.clip(smooth, -1, 1)
        x = np.concatenate([ns, smooth], 1)
        low = np.min([normed_forward(net, x)[0][:, 0] for net in critic_targets], axis=0)
        y = r + discount * (1 - d) * (low - critic_bc * ((smooth - na) ** 2).sum(1))
        loss, seen = 0.0, []
        for e in range(2):
            q, kept = normed_forward(critics[e], np.concatenate([s, a], 1))
            seen.append(q[:, 0])
            loss += ((q[:, 0] - y) ** 2).mean()
            grads, _ = normed_backward(critics[e], kept, 2 * (q - y[:, None]) / batch)
            critics[e] = adams[e].step(critics[e], grads)
        log = {"critic_loss": loss, "q_min": np.min(seen, axis=0).mean(), "actor_updated": t % 2 == 0}
        if t % 2 == 0:
            raw, kept = normed_forward(actor, s)
            pi = np.tanh(raw)
            runs = [normed_forward(net, np.concatenate([s, pi], 1)) for net in critics]
            q = np.stack([run[0][:, 0] for run in runs])
            scale, bc = 1 / np.abs(q.min(0)).mean() if normalize_q else 1.0, ((pi - a) ** 2).sum(1)
            log |= {"actor_loss": (actor_bc * bc - scale * q.min(0)).mean(), "bc_mse_policy": bc.mean()}
            log["action_mse"] = ((pi - a) ** 2).mean()
            slope = 2 * actor_bc * (pi - a) / batch
            for e in range(2):
                chosen = -scale * (q.argmin(0) == e)[:, None] / batch
                slope = slope + normed_backward(critics[e], runs[e][1], chosen)[1][:, state_dim:]
            grads, _ = normed_backward(actor, kept, slope * (1 - pi**2))
            actor_target = polyak(actor_target, actor)
            actor = actor_adam.step(actor, grads)
            critic_targets = [polyak(*pair) for pair in zip(critic_targets, critics, strict=True)]
        out |= {f"step{t}.{key}": np.asarray(value) for key, value in log.items()}
        keep(f"step{t}")
    np.savez(path, **out)
    return path
