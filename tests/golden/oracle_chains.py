"""ReinFlow and DPPO in NumPy, float64, gradients by central differences, in the layout of their golden files.

Cases of other options than the stored ones, from code that shares nothing with ours.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np

ACTS = {"ReLU": lambda x: np.maximum(x, 0), "Tanh": np.tanh, "Mish": lambda x: x * np.tanh(np.logaddexp(0, x))}
HALF = 0.5 * np.log(2 * np.pi)


class Weights:
    """Makes the arrays of networks by PyTorch's names, exact in float32."""

    def __init__(self, rng):
        self.rng, self.p = rng, {}

    def array(self, name, *shape):
        self.p[name] = (self.rng.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32).astype(np.float64)

    def linear(self, name, i, o):
        self.array(f"{name}.weight", o, i)
        self.array(f"{name}.bias", o)

    def body(self, name, sizes, residual):
        """Returns names; sizes (in, hidden ..., out)."""
        if not residual:
            for n, (i, o) in enumerate(pairwise(sizes)):
                self.linear(f"{name}.moduleList.{n}.linear_1", i, o)
            return
        last = (len(sizes) - 3) // 2 + 1
        self.linear(f"{name}.layers.0", sizes[0], sizes[1])
        for n in range(1, last):
            for part in ("l1", "l2"):
                self.linear(f"{name}.layers.{n}.{part}", sizes[1], sizes[1])
        self.linear(f"{name}.layers.{last}", sizes[1], sizes[-1])


def linear(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def body(p, name, x, act):
    count = lambda stem, rest: sum(key.startswith(stem) and key.endswith(rest) for key in p)  # noqa: E731
    if plain := count(f"{name}.moduleList.", ".weight"):
        for n in range(plain):
            x = linear(p, f"{name}.moduleList.{n}.linear_1", x)
            x = ACTS[act](x) if n < plain - 1 else x
        return x
    blocks = count(f"{name}.layers.", ".l1.weight")
    x = linear(p, f"{name}.layers.0", x)
    for n in range(1, blocks + 1):
        x = x + linear(p, f"{name}.layers.{n}.l2", ACTS[act](linear(p, f"{name}.layers.{n}.l1", ACTS[act](x))))
    return linear(p, f"{name}.layers.{blocks + 1}", x)


def sinusoid(u, dim):
    angle = np.asarray(u, float)[:, None] * np.exp(-np.log(1e4) / (dim // 2 - 1) * np.arange(dim // 2))
    return np.concatenate([np.sin(angle), np.cos(angle)], 1)


def init_denoiser(w, h, name=""):
    """Arrays of a velocity or noise network, by the hyper-parameters."""
    d, s, a = h["time_dim"], h["obs_dim"] * h["cond_steps"], h["horizon_steps"] * h["action_dim"]
    cond = h["cond_mlp_dims"]
    if h["kind"] == "shortcut":
        w.linear(f"{name}t_emb.0", 2 * d, d)
        w.linear(f"{name}t_emb.2", d, d)
    else:
        w.linear(f"{name}time_embedding.1", d, 2 * d)
        w.linear(f"{name}time_embedding.3", 2 * d, d)
    if cond:
        w.body(f"{name}{'cond_emb' if h['kind'] == 'shortcut' else 'cond_mlp'}", (s, *cond), False)
    c = cond[-1] if cond else s
    joint = d if h.get("embed_combination") in ("add", "multiply") else d + c
    head = "vel_head" if h["kind"] == "shortcut" else "mlp_mean"
    w.body(f"{name}{head}", (a + joint, *h["mlp_dims"], a), h["residual"])
    return c


def denoise(p, h, name, x, t, s, span=0.0):
    """(output [B, H, A], time's code, state's code) of noisy chunks [B, H, A] at times [B]."""
    mish, act, flat, d = ACTS["Mish"], h["activation"], x.reshape(len(x), -1), h["time_dim"]
    if h["kind"] == "shortcut":
        both = np.concatenate([sinusoid(t, d), sinusoid(np.full(len(x), span), d)], 1)
        e = linear(p, f"{name}t_emb.2", mish(linear(p, f"{name}t_emb.0", both)))
        c = body(p, f"{name}cond_emb", s, act) if h["cond_mlp_dims"] else s
        joint = {"add": lambda: e + c, "multiply": lambda: e * c}.get(
            h["embed_combination"], lambda: np.concatenate([e, c], 1)
        )()
        return body(p, f"{name}vel_head", np.concatenate([flat, joint], 1), act).reshape(x.shape), e, c
    e = linear(p, f"{name}time_embedding.3", mish(linear(p, f"{name}time_embedding.1", sinusoid(t, d))))
    c = body(p, f"{name}cond_mlp", s, act) if h["cond_mlp_dims"] else s
    return body(p, f"{name}mlp_mean", np.concatenate([flat, e, c], 1), act).reshape(x.shape), e, c


def density(x, mean, std):
    return -0.5 * ((x - mean) / std) ** 2 - np.log(std) - HALF


def gradient(f, p, eps=1e-6):
    """Of f(p), one number at a time."""
    out = {}
    for name, x in p.items():
        g = out[name] = np.zeros_like(x)
        for i in np.ndindex(x.shape):
            ends = []
            for sign in (1, -1):
                moved = x.copy()
                moved[i] += sign * eps
                ends.append(f({**p, name: moved}))
            g[i] = (ends[0] - ends[1]) / (2 * eps)
    return out


def nearby(rng, p, scale=0.03):
    return {k: (v + scale * rng.normal(size=v.shape)).astype(np.float32).astype(float) for k, v in p.items()}


def ppo(h, log_ratio, advantage, eps):
    ratio = np.exp(log_ratio)
    loss = np.maximum(-advantage * ratio, -advantage * np.clip(ratio, 1 - eps, 1 + eps)).mean()
    kl = (ratio - 1 - log_ratio).mean()
    return loss, {"clipfrac": (np.abs(ratio - 1) > eps).mean(), "approx_kl": kl, "ratio_mean": ratio.mean()}


def value_loss(h, p, s, ret, old):
    v = body(p, "Q1", s, h["critic_activation"])[:, 0]
    square = (v - ret) ** 2
    if h["clip_vloss_coef"]:
        c = h["clip_vloss_coef"]
        square = np.maximum(square, (np.clip(v, old - c, old + c) - ret) ** 2)
    return 0.5 * square.mean(), v


def save(path, h, **groups):
    arrays = {
        f"{group}/{name}".rstrip("/"): np.asarray(x) for group, tree in groups.items() for name, x in tree.items()
    }
    arrays = {k: x.astype(np.float32) if x.dtype.kind == "f" else x for k, x in arrays.items()}
    np.savez(path, hyperparameters_json=np.asarray(json.dumps(h)), **arrays)
    return path


COMMON = {
    "B": 6, "horizon_steps": 2, "action_dim": 2, "obs_dim": 3, "cond_steps": 1, "mlp_dims": [6, 6, 6],
    "activation": "Mish", "cond_mlp_dims": None, "time_dim": 4, "residual": True, "randn_clip_value": 3.0,
    "denoised_clip_value": 1.0, "clip_ploss_coef": 0.02, "clip_vloss_coef": None, "ent_coef": 0.03, "vf_coef": 0.5,
    "use_bc_loss": False, "critic_mlp_dims": [5, 5, 5], "critic_activation": "Mish", "critic_residual": True,
    "note": "NumPy",
}  # fmt: skip
REINFLOW = {
    **COMMON, "kind": "reflow", "inference_steps": 4, "ft_denoising_steps": 4, "embed_combination": None,
    "noise_scheduler_type": "learn", "min_logprob_denoising_std": 0.1, "max_logprob_denoising_std": 0.3,
    "min_sampling_denoising_std": 0.1, "act_min": -1.0, "act_max": 1.0, "logprob_min": -1.0, "logprob_max": 1.0,
    "noise_hidden_dims": [4, 4], "noise_activation": "Tanh", "learn_explore_time_embedding": False,
    "time_dim_explore": 0, "use_time_independent_noise": False, "normalize_denoising_horizon": True,
    "normalize_act_space_dimension": True, "account_for_initial_stochasticity": True, "clip_intermediate_actions": True,
    "bc_coeff": 0.0,
}  # fmt: skip
DPPO = {
    **COMMON, "kind": "dppo", "denoising_steps": 6, "ft_denoising_steps": 3, "reward_horizon": 2, "ent_coef": 0.0,
    "clip_ploss_coef_base": 0.002, "clip_ploss_coef_rate": 3, "gamma_denoising": 0.9,
    "clip_advantage_lower_quantile": 0, "clip_advantage_upper_quantile": 1, "norm_adv": True,
    "min_sampling_denoising_std": 0.1, "min_logprob_denoising_std": 0.1, "final_action_clip_value": None,
    "use_ddim": False, "ddim_steps": None, "eta": None, "eps_clip_value": None,
}  # fmt: skip


def write_reinflow(path: Path, seed: int = 0, **options) -> Path:
    h = {**REINFLOW, **options}
    rng = np.random.default_rng(seed)
    b, k, ha, low, high = (h[n] for n in ("B", "inference_steps", "horizon_steps", "min_logprob_denoising_std",
                                          "max_logprob_denoising_std"))  # fmt: skip
    shape, size = (b, ha, h["action_dim"]), ha * h["action_dim"]
    learned = 0 if h["noise_scheduler_type"] == "const" else h["ft_denoising_steps"]
    # --- weights ---
    old, w = Weights(rng), Weights(rng)
    init_denoiser(old, h)
    c = init_denoiser(w, h, "policy.")
    table = h["learn_explore_time_embedding"]
    width = c if h["use_time_independent_noise"] else c + (h["time_dim_explore"] if table else h["time_dim"])
    w.body("explore_noise_net.mlp_logvar", (width, *h["noise_hidden_dims"], size), False)
    if table:
        w.array("time_embedding_explore.weight", k, h["time_dim_explore"])
    behavior, critic = w.p, Weights(rng)
    current = nearby(rng, behavior)
    s = rng.normal(size=(b, h["cond_steps"], h["obs_dim"])).astype(np.float32).astype(float)
    flat = s.reshape(b, -1)
    critic.body("Q1", (flat.shape[1], *h["critic_mlp_dims"], 1), h["critic_residual"])
    left, inclusive = np.arange(k) / k, np.linspace(0, 1, k)

    def step(p, x, t, i, stopped=None):
        """(mean, std [B, H, A]); `stopped`: parameters whose time code the noise reads, which takes no gradient."""
        v, e, c = denoise(p, h, "policy.", x, np.full(b, t), flat, 1 / k)
        mean = x + v / k
        if h["clip_intermediate_actions"]:
            mean = mean.clip(-h["denoised_clip_value"], h["denoised_clip_value"])
        if i < k - learned:
            u = np.linspace(0, 1, k)[i]
            fixed = {"vp": np.sqrt(0.2 * u * (1 - u)), "lin": 0.1 * u}.get(h["noise_scheduler_type"], low)
            return mean, np.full(shape, np.clip(fixed, low, high))
        if stopped is not None:
            e = denoise(stopped, h, "policy.", x, np.full(b, t), flat, 1 / k)[1]
        code = [np.tile(p["time_embedding_explore.weight"][i], (b, 1))] if table else [e]
        code = [] if h["use_time_independent_noise"] else code
        raw = body(p, "explore_noise_net.mlp_logvar", np.concatenate([*code, c], 1), h["noise_activation"])
        logvar = 2 * np.log(low) + 2 * np.log(high / low) * (np.tanh(raw) + 1) / 2
        return mean, np.exp(logvar / 2).reshape(shape)

    def normalised(first, steps):
        n = k + h["account_for_initial_stochasticity"]
        total = steps.sum(1) + (first if h["account_for_initial_stochasticity"] else 0)
        total = total / (n if h["normalize_denoising_horizon"] else 1)
        return total / (size if h["normalize_act_space_dimension"] else 1)

    def sample(p, explore):
        x0 = rng.normal(size=shape).astype(np.float32).astype(float)
        eps = rng.normal(size=(b, k, *shape[1:])).astype(np.float32).astype(float)
        chain, means, stds, logs = [x0], [], [], []
        for i, t in enumerate(left if h["kind"] == "shortcut" else inclusive):
            mean, std = step(p, chain[-1], t, i)
            std = np.maximum(std, h["min_sampling_denoising_std"])
            clip = h["randn_clip_value"]
            x = mean + std * eps[:, i].clip(-clip, clip) if explore else mean
            x = x.clip(-1, 1) if i == k - 1 else x
            told = mean if explore or h["clip_intermediate_actions"] else x
            logs.append(density(x, told, std).sum((1, 2)))
            chain.append(x)
            means.append(mean)
            stds.append(std)
        stack = lambda xs: np.stack(xs, 1)  # noqa: E731
        first = density(x0, 0, 1).sum((1, 2))
        out = {"x0": x0, "chain": stack(chain), "action": x, "step_mean": stack(means), "step_std": stack(stds)}
        out |= {"step_logprob_sum": stack(logs), "logprob": normalised(first, stack(logs))}
        return {**out, "eps": eps} if explore else out

    train, judged = sample(behavior, True), sample(behavior, False)
    chain = train["chain"].astype(np.float32).astype(float)

    def likelihood(p, stopped=None):
        laws = [step(p, chain[:, i], left[i], i, stopped) for i in range(k)]
        mean, std = (np.stack(x, 1) for x in zip(*laws, strict=True))
        each = density(chain[:, 1:], mean, std).sum((2, 3))
        first = density(chain[:, 0], 0, 1).sum((1, 2))
        n, start = k + h["account_for_initial_stochasticity"], h["account_for_initial_stochasticity"]
        entropy = (np.log(std) + 0.5 + HALF).sum((1, 2, 3)) + start * size * (0.5 + HALF)
        entropy = entropy / n / (size if h["normalize_act_space_dimension"] else 1)
        return {
            "step_mean": mean.reshape(b, k, -1), "step_std": std.reshape(b, k, -1), "step_logprob": each,
            "init_logprob": first, "logprob": normalised(first, each), "entropy_rate": entropy, "std_mean": std.mean(),
        }  # fmt: skip

    def rolled(p, name, z):
        for t in inclusive:
            z = (z + denoise(p, h, name, z, np.full(b, t), flat)[0] / k).clip(-1, 1)
        return z

    # --- losses ---
    draw = {n: rng.normal(size=b).astype(np.float32).astype(float) for n in ("returns", "oldvalues", "advantages")}
    a = draw["advantages"]
    a = (a - a.mean()) / (a.std(ddof=1) + 1e-8)
    before, now = likelihood(behavior), likelihood(current)
    clamp = lambda x: x.clip(h["logprob_min"], h["logprob_max"])  # noqa: E731
    zero = np.zeros(shape)
    z = zero + denoise(old.p, h, "", zero, np.zeros(b), flat)[0] / k if h["use_bc_loss"] else zero

    def actor_parts(p, stopped):
        made = likelihood(p, stopped)
        pg, more = ppo(h, clamp(made["logprob"]) - clamp(before["logprob"]), a, h["clip_ploss_coef"])
        bc = ((rolled(p, "policy.", z) - rolled(old.p, "", zero)) ** 2).mean() if h["use_bc_loss"] else 0.0
        return pg, -made["entropy_rate"].mean(), bc, more

    def actor_total(p):
        pg, entropy, bc, _ = actor_parts(p, current)
        return pg + h["ent_coef"] * entropy + h["bc_coeff"] * bc

    pg, entropy, bc, more = actor_parts(current, None)
    critic_total = lambda p: value_loss(h, p, flat, draw["returns"], draw["oldvalues"])  # noqa: E731
    v, values = critic_total(critic.p)
    out = {"pg_loss": pg, "entropy_loss": entropy, "v_loss": v, "bc_loss": bc, **more, "value_mean": values.mean()}
    for name, x in (("old", clamp(before["logprob"])), ("new", clamp(now["logprob"]))):
        out |= {f"{name}logprob_min": x.min(), f"{name}logprob_max": x.max(), f"{name}logprob_std": x.std(ddof=1)}
    out |= {"noise_std_mean": now["std_mean"], "total": actor_total(current) + h["vf_coef"] * v}
    ratio = np.exp(clamp(before["logprob"]) - clamp(train["logprob"])).mean()
    check = {"mean_ratio_recomputed_vs_sampled": ratio}
    if h["use_bc_loss"]:
        itself = ((rolled(old.p, "", z) - rolled(old.p, "", zero)) ** 2).mean()
        check |= {"w2_z_after_first_call": z, "w2_same_policy": itself, "w2_same_policy_fresh": 0.0}
    grad = gradient(actor_total, current)
    if not learned:
        grad = {name: g for name, g in grad.items() if name.startswith("policy.")}
    bounds = {f"explore_noise_net.logvar_{n}": 2 * np.log(x) for n, x in (("min", low), ("max", high))}
    return save(
        path, h, actor_pretrained=old.p, actor_behavior=behavior | bounds, actor_current=current | bounds,
        critic=critic.p, sample_train=train, sample_eval=judged, recompute_behavior=before, recompute_current=now,
        loss_in={**draw, "chains": chain, "oldlogprobs": before["logprob"]}, loss_out=out, check=check,
        grad_actor=grad, grad_critic=gradient(lambda p: h["vf_coef"] * critic_total(p)[0], critic.p),
        obs_state={"": s},
    )  # fmt: skip


def schedule(steps):
    """Of DDPM, by diffusion time, kept in float32."""
    u = np.linspace(0, steps + 1, steps + 1)
    f = np.cos((u / (steps + 1) + 0.008) / 1.008 * np.pi / 2) ** 2
    f = f / f[0]
    beta = np.clip(1 - f[1:] / f[:-1], 0, 0.999).astype(np.float32).astype(float)
    ab = np.cumprod(1 - beta)
    prev = np.append(1, ab[:-1])
    var = beta * (1 - prev) / (1 - ab)
    return {
        "betas": beta, "alphas": 1 - beta, "alphas_cumprod": ab, "alphas_cumprod_prev": prev,
        "sqrt_alphas_cumprod": np.sqrt(ab), "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - ab),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / ab), "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / ab - 1),
        "ddpm_var": var, "ddpm_logvar_clipped": np.log(np.maximum(var, 1e-20)),
        "ddpm_mu_coef1": beta * np.sqrt(prev) / (1 - ab), "ddpm_mu_coef2": (1 - prev) * np.sqrt(1 - beta) / (1 - ab),
    }  # fmt: skip


def write_dppo(path: Path, seed: int = 0, items: int = 10, bc_coeff: float = 0.1, **options) -> Path:
    h = {**DPPO, **options}
    rng = np.random.default_rng(seed)
    b, tuned, shape = h["B"], h["ft_denoising_steps"], (h["horizon_steps"], h["action_dim"])
    consts = schedule(h["denoising_steps"])
    times = np.arange(h["denoising_steps"])[::-1]
    if h["use_ddim"]:
        n = h["ddim_steps"]
        times = (np.arange(n) * (h["denoising_steps"] // n))[::-1]
        ab = consts["alphas_cumprod"][times]
        prev = np.append(ab[1:], 1)
        consts |= {
            "ddim_t": times, "ddim_alphas": ab, "ddim_alphas_sqrt": np.sqrt(ab), "ddim_alphas_prev": prev,
            "ddim_sqrt_one_minus_alphas": np.sqrt(1 - ab), "ddim_sigmas": np.zeros(n),
        }  # fmt: skip
    # --- weights ---
    w, critic = Weights(rng), Weights(rng)
    init_denoiser(w, h)
    frozen = w.p
    behavior = nearby(rng, frozen)
    current = nearby(rng, behavior)
    s = rng.normal(size=(b, h["cond_steps"], h["obs_dim"])).astype(np.float32).astype(float)
    flat = s.reshape(b, -1)
    critic.body("Q1", (flat.shape[1], *h["critic_mlp_dims"], 1), h["critic_residual"])

    def move(p, x, i, s, eta):
        """(mean, std) of step i of the chain, counted from the noisiest."""
        out, limit = denoise(p, h, "", x, np.full(len(x), times[i]), s)[0], h["denoised_clip_value"]
        if h["use_ddim"]:
            a, before = consts["ddim_alphas"][i], consts["ddim_alphas_prev"][i]
            clean = ((x - np.sqrt(1 - a) * out) / np.sqrt(a)).clip(-limit, limit)
            noise = (x - np.sqrt(a) * clean) / np.sqrt(1 - a)
            if h["eps_clip_value"]:
                noise = noise.clip(-h["eps_clip_value"], h["eps_clip_value"])
            std = max(eta * np.sqrt((1 - before) / (1 - a) * (1 - a / before)), 1e-10)
            return np.sqrt(before) * clean + np.sqrt(max(1 - before - std**2, 0)) * noise, std
        c = {name: x[times[i]] for name, x in consts.items()}
        clean = c["sqrt_recip_alphas_cumprod"] * x - c["sqrt_recipm1_alphas_cumprod"] * out
        mean = c["ddpm_mu_coef1"] * clean.clip(-limit, limit) + c["ddpm_mu_coef2"] * x
        return mean, np.exp(c["ddpm_logvar_clipped"] / 2)

    eta = h["eta"] if h["use_ddim"] else 1.0

    def sample(p, s, explore):
        x = rng.normal(size=(len(s), *shape)).astype(np.float32).astype(float)
        eps = rng.normal(size=(len(s), len(times), *shape)).astype(np.float32).astype(float)
        out, chain = {"x_init": x, "eps_raw": eps}, [x]
        for i in range(len(times)):
            mean, std = move(p if i >= len(times) - tuned else frozen, x, i, s, eta if explore else 0.0)
            still = 0.0 if h["use_ddim"] or i == len(times) - 1 else max(std, 1e-3)
            std = max(std, h["min_sampling_denoising_std"]) if explore else still
            x = mean + std * eps[:, i].clip(-h["randn_clip_value"], h["randn_clip_value"])
            if i == len(times) - 1 and h["final_action_clip_value"]:
                x = x.clip(-h["final_action_clip_value"], h["final_action_clip_value"])
            chain.append(x)
        return out | {"chain": np.stack(chain[len(times) - tuned :], 1), "action": x}

    train, judged = sample(behavior, flat, True), sample(behavior, flat, False)
    chain = train["chain"].astype(np.float32).astype(float)

    def likelihood(p, chain, s):
        laws = [move(p, chain[:, j], len(times) - tuned + j, s, eta) for j in range(tuned)]
        mean = np.stack([law[0] for law in laws], 1)
        std = np.maximum([law[1] for law in laws], h["min_logprob_denoising_std"])[:, None, None] + 0 * mean
        return {"mean": mean, "std": std, "logprob": density(chain[:, 1:], mean, std)}

    before, now = likelihood(behavior, chain, flat), likelihood(current, chain, flat)
    # --- losses ---
    rows, level = rng.integers(b, size=items), rng.integers(tuned, size=items)
    draw = {n: rng.normal(size=b).astype(np.float32).astype(float) for n in ("returns", "oldvalues", "advantages")}
    a = draw["advantages"][rows]
    if h["norm_adv"]:
        a = (a - a.mean()) / (a.std(ddof=1) + 1e-8)
    a = a.clip(*np.quantile(a, [h["clip_advantage_lower_quantile"], h["clip_advantage_upper_quantile"]]))
    discount, base, rate = h["gamma_denoising"] ** (tuned - 1 - level), h["clip_ploss_coef_base"], 3
    eps = base + (h["clip_ploss_coef"] - base) * (np.exp(rate * level / (tuned - 1)) - 1) / (np.exp(rate) - 1)
    averaged = lambda x: x.clip(-5, 2)[..., : h["reward_horizon"], :].mean((-1, -2))[rows, level]  # noqa: E731
    imitated = sample(frozen, flat[rows], True) if h["use_bc_loss"] else {}

    def actor_parts(p):
        ratio = averaged(likelihood(p, chain, flat)["logprob"]) - averaged(before["logprob"])
        pg, more = ppo(h, ratio, a * discount, eps)
        bc = -likelihood(p, imitated["chain"], flat[rows])["logprob"].clip(-5, 2).mean() if imitated else 0.0
        return pg, bc, more

    pg, bc, more = actor_parts(current)
    critic_total = lambda p: value_loss(h, p, flat[rows], draw["returns"][rows], draw["oldvalues"][rows])  # noqa: E731
    v, _ = critic_total(critic.p)
    out = {"pg_loss": pg, "entropy_loss": -eta, "v_loss": v, "bc_loss": bc, **more, "eta_mean": eta}
    out["total"] = pg + bc_coeff * bc + h["vf_coef"] * v
    return save(
        path, h, schedule=consts, actor_frozen=frozen, actor_behavior=behavior, actor_current=current, critic=critic.p,
        sample_train=train, sample_eval=judged, recompute_behavior=before, recompute_current=now,
        loss_in={**draw, "batch_inds": rows, "denoising_inds": level, "oldlogprobs": before["logprob"]}, loss_out=out,
        loss_aux={"clip_per_sample": eps, "discount_per_sample": discount},
        grad_actor=gradient(lambda p: actor_parts(p)[0] + bc_coeff * actor_parts(p)[1], current),
        grad_critic=gradient(lambda p: h["vf_coef"] * critic_total(p)[0], critic.p),
        bc={name: imitated[name] for name in ("x_init", "eps_raw")} if imitated else {}, obs_state={"": s},
    )  # fmt: skip
