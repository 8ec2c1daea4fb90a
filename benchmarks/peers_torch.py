"""Fine-tuning of denoising policies in PyTorch, eager, with the losses of ReinFlow and of DPPO; for `peers.py`.

Axes: b items, B observations, N chunks, J items of a chunk, K steps of a chain, D numbers of a chunk, E time's code.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Measure = Callable[[], Any]
HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class Torch:
    """A policy and its critic with the weights, options and rollout that `benchmarks.chains.export` wrote."""

    def __init__(self, path: str, threads: int):
        torch.set_num_threads(threads)
        with np.load(path) as file:
            arrays = dict(file)
        self.options = json.loads(str(arrays.pop("options")))
        parts = ("time", "body", "noise", "critic")
        self.time, self.body, self.noise, self.critic = (self._linears(arrays, part) for part in parts)
        self.data = {name: torch.from_numpy(x) for name, x in arrays.items() if "/" not in name}
        half = self.time[0].in_features // 2
        self._waves = torch.exp(torch.arange(half) * (-np.log(10000.0) / (half - 1)))
        actor = [*self.time.parameters(), *self.body.parameters(), *self.noise.parameters()]
        self._actor, self._critic = (
            torch.optim.AdamW(
                params, self.options[f"{name}_lr"], weight_decay=self.options[f"{name}_decay"], fused=True
            )
            for name, params in (("actor", actor), ("critic", self.critic.parameters()))
        )

    def _linears(self, arrays: dict[str, np.ndarray], part: str):
        layers = torch.nn.ModuleList()
        while (name := f"{part}/{len(layers)}") + "/kernel" in arrays:
            kernel, bias = (torch.from_numpy(arrays[f"{name}/{kind}"]) for kind in ("kernel", "bias"))
            layers.append(torch.nn.Linear(*kernel.shape))
            layers[-1].weight.data, layers[-1].bias.data = kernel.T.contiguous(), bias
        return layers

    def code(self, net, t):
        """Times [...] -> [..., E]."""
        angle = t[..., None] * self._waves
        hidden = net[0](torch.cat([angle.sin(), angle.cos()], -1))
        return net[1](torch.nn.functional.mish(hidden))

    def log_density(self, x, mean, std):
        return -0.5 * ((x - mean) / std) ** 2 - std.log() - HALF_LOG_TWO_PI

    def noisy(self, mean, std):
        return mean + std * torch.randn_like(mean).clamp(-self.options["noise_clip"], self.options["noise_clip"])

    def step(self, items, part: int = 0) -> tuple[Any, Any]:
        """A gradient step of critic and actor on the minibatch of items [b], `part` at a time: their losses before it.

        Args: part: divides b; 0: all at once.
        """
        levels = self.data["log_prob"].shape[1]
        row, level = items // levels, items % levels
        advantage = self.data["advantage"][row]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8) * self.data["weight"][level]
        parts = list(zip(*(x.split(part or len(items)) for x in (row, level, advantage)), strict=True))
        critic = self._descend(self._critic, lambda row, *_: self.critic_loss(row), parts, self.options["value_weight"])
        return critic, self._descend(self._actor, self.actor_loss, parts)

    def _descend(self, optimizer, loss, parts, weight: float = 1.0):
        """A step along `weight` times the mean over parts of a loss: that mean."""
        optimizer.zero_grad()
        total = 0.0
        for part in parts:
            value = loss(*part) / len(parts)
            (weight * value).backward()
            total += value.detach()
        optimizer.step()
        return total

    def critic_loss(self, row):
        value = residual(self.critic, self.data["state"][row], torch.nn.functional.mish)[:, 0]
        return ((value - self.data["ret"][row]) ** 2).mean() / 2

    def actor_loss(self, row, level, advantage):
        log_prob, entropy = self.judge(self.data["state"][row], self.data["chain"][row], level)
        ratio, clip = (log_prob - self.data["log_prob"][row, level]).exp(), self.data["clip"][level]
        loss = torch.maximum(-advantage * ratio, -advantage * torch.clamp(ratio, 1 - clip, 1 + clip)).mean()
        return loss - self.options["entropy_weight"] * entropy

    def update(self, size: int, part: int = 0) -> Measure:
        """An epoch over the items in shuffled minibatches of `size`: seconds per gradient step."""
        count = self.data["log_prob"].numel()
        total = count * self.options["duplicates"]
        steps = total // size

        def measure() -> float:
            began = time.perf_counter()
            for items in (torch.randperm(total)[: steps * size] % count).split(size):
                self.step(items, part)
            return (time.perf_counter() - began) / steps

        self.step(torch.arange(size) % count, part)
        return measure

    def losses(self, part: int = 0) -> Measure:
        """Another step on all items: the losses before it."""
        items = torch.arange(self.data["log_prob"].numel())
        return lambda: [x.item() for x in self.step(items, part)]

    def acting(self, size: int, calls: int) -> Measure:
        """The exploring policy with the record that it leaves, NumPy in and out: microseconds per call."""
        state = self.data["state"][:size].numpy()

        @torch.inference_mode()
        def measure() -> float:
            began = time.perf_counter()
            for _ in range(calls):
                self.play(torch.from_numpy(state))[0].numpy()
            return 1e6 * (time.perf_counter() - began) / calls

        measure()
        return measure


def residual(layers, x, activation):
    """Dense, blocks y + L2(act(L1(act(y)))), Dense."""
    first, *inner, last = layers
    x = first(x)
    for one, two in zip(inner[::2], inner[1::2], strict=True):
        x = x + two(activation(one(activation(x))))
    return last(x)


class Reinflow(Torch):
    """A rectified flow with learned noise; a chain is one item."""

    def law(self, state, x, k):
        """(mean, std) [b, k, D] of steps k [k] from x [b, k, D], state [b, k, S]."""
        limit, steps = self.options["limit"], self.data["chain"].shape[1] - 1
        code = self.code(self.time, k / steps).expand(len(x), -1, -1)
        velocity = residual(self.body, torch.cat([x, code, state], -1), torch.relu)
        raw = torch.cat([code.detach(), state], -1)
        for layer in self.noise[:-1]:
            raw = layer(raw).tanh()
        low, high = np.log(self.options["std_min"]), np.log(self.options["std_max"])
        std = (low + (high - low) * (self.noise[-1](raw).tanh() + 1) / 2).exp()
        return (x + velocity / steps).clamp(-limit, limit), std

    def log_prob(self, chain, mean, std):
        """(l, entropy) [b]."""
        low, high = self.options["log_prob_min"], self.options["log_prob_max"]
        start = (-0.5 * chain[:, 0] ** 2 - HALF_LOG_TWO_PI).sum(-1)
        total = start + self.log_density(chain[:, 1:], mean, std).sum((1, 2))
        numbers = chain[0].numel()
        return (total / numbers).clamp(low, high), std.log().sum((1, 2)) / numbers + 0.5 + HALF_LOG_TWO_PI

    def judge(self, state, chain, level):
        """(l [b], entropy)."""
        k = torch.arange(chain.shape[1] - 1)
        log_prob, entropy = self.log_prob(chain, *self.law(state[:, None].expand(-1, len(k), -1), chain[:, :-1], k))
        return log_prob, entropy.mean()

    def play(self, state):
        """(action [B, D], chain [B, K + 1, D], l [B])."""
        _, states, numbers = self.data["chain"].shape
        chain, laws = [torch.randn(len(state), 1, numbers)], []
        for k in torch.arange(states - 1)[:, None]:
            laws.append(self.law(state[:, None], chain[-1], k))
            chain.append(self.noisy(*laws[-1]))
        chain[-1] = chain[-1].clamp(-1, 1)
        chain, mean, std = (torch.cat(parts, 1) for parts in (chain, *zip(*laws, strict=True)))
        return chain[:, -1], chain, self.log_prob(chain, mean, std)[0]


class Dppo(Torch):
    """A denoising diffusion whose last J steps are tuned; each is an item."""

    def __init__(self, path: str, threads: int):
        super().__init__(path, threads)
        beta, bar, before = self.data["schedule"]
        # by diffusion time: of what the clean chunk and the mean are made
        self._table = torch.stack([
            1 / bar.sqrt(), (1 - bar).sqrt() / bar.sqrt(), beta * before.sqrt() / (1 - bar),
            (1 - before) * (1 - beta).sqrt() / (1 - bar), (beta * (1 - before) / (1 - bar)).clamp_min(1e-20).sqrt(),
        ])  # fmt: skip
        self._frozen = copy.deepcopy((self.time, self.body))

    def law(self, nets, state, x, k):
        """(mean [b, D], std [b, 1]) of steps from x [b, D] at diffusion times k [b], or [1] for all."""
        (time, body), limit = nets, self.options["limit"]
        code = self.code(time, k).expand(len(x), -1)
        noise = residual(body, torch.cat([x, code, state], -1), torch.relu)
        of_x, of_noise, of_clean, also_x, std = self._table[:, k, None]
        return of_clean * (of_x * x - of_noise * noise).clamp(-limit, limit) + also_x * x, std

    def log_prob(self, after, mean, std):
        each = self.log_density(after, mean, std.clamp_min(self.options["log_prob_std"]))
        return each.clamp(self.options["log_prob_min"], self.options["log_prob_max"]).mean(-1)

    def judge(self, state, chain, level):
        """(l [b], entropy)."""
        rows, k = torch.arange(len(chain)), chain.shape[1] - 2 - level
        law = self.law((self.time, self.body), state, chain[rows, level], k)
        return self.log_prob(chain[rows, level + 1], *law), 0.0

    def play(self, state):
        """(action [B, D], chain [B, J + 1, D], l [B, J])."""
        tuned = self.data["log_prob"].shape[1]
        x, chain, log_probs = torch.randn(len(state), self.data["chain"].shape[2]), [], []
        for k in torch.arange(self._table.shape[1]).flip(0)[:, None]:
            before, frozen = x, k >= tuned
            mean, std = self.law(self._frozen if frozen else (self.time, self.body), state, x, k)
            x = self.noisy(mean, std.clamp_min(self.options["sampling_std"]))
            if not frozen:
                chain.append(before)
                log_probs.append(self.log_prob(x, mean, std))
        return x.clamp(-1, 1), torch.stack([*chain, x], 1), torch.stack(log_probs, 1)
