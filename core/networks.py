"""Networks: dense and residual stacks, time embedding, pixel encoder, ensembles.

Modules are flax.linen with `nn.compact` only.  Parameters are float32, or float64 where x64 is on.  Activations,
initialisers and encoders are named by strings, so that a config can hold them; an unknown name raises UnknownName.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jax.custom_batching import sequential_vmap

from core.config import ConfigError, choose
from core.types import Array, Key, PyTree

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "tanh": jnp.tanh,
    "mish": lambda x: x * jnp.tanh(nn.softplus(x)),
    "gelu": lambda x: nn.gelu(x, approximate=False),  # erf: torch's default
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),  # flax's default
    "silu": nn.silu,
    "elu": nn.elu,
    "softplus": nn.softplus,
    "sigmoid": nn.sigmoid,
    "identity": lambda x: x,
}


def _uniform(bound: float) -> Callable:
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def _orthogonal(scale: float) -> Callable:
    """One after the other under `vmap`: on a CPU jaxlib's (0.10.2) QR of several matrices waits for threads of the pool
    that it runs in, and where as many run side by side as there are threads it waits for ever.
    """
    draw = initializers.orthogonal(scale)
    return lambda key, shape, dtype: sequential_vmap(lambda key: draw(key, shape, dtype))(key)


# name -> (scale used when the string gives none, (scale, fan_in) -> kernel and bias initialisers)
INITIALIZERS: dict[str, tuple[float, Callable]] = {
    # torch's Linear: W, b ~ U(+-scale / sqrt(fan_in))
    "torch": (1.0, lambda s, fan_in: (_uniform(s / math.sqrt(fan_in)), _uniform(s / math.sqrt(fan_in)))),
    # W as torch, b = scale (ReBRAC's hidden layers: "torch_bias:0.1")
    "torch_bias": (0.0, lambda s, fan_in: (_uniform(1 / math.sqrt(fan_in)), initializers.constant(s))),
    # W, b ~ U(+-scale) (ReBRAC's heads: "uniform:0.001" and "uniform:0.003")
    "uniform": (1e-3, lambda s, _: (_uniform(s), _uniform(s))),
    # below, b = 0 and scale is the gain (orthogonal) or the variance's factor (the others)
    "orthogonal": (math.sqrt(2), lambda s, _: (_orthogonal(s), initializers.zeros)),
    "glorot": (1.0, lambda s, _: (initializers.variance_scaling(s, "fan_avg", "uniform"), initializers.zeros)),
    "lecun": (1.0, lambda s, _: (initializers.variance_scaling(s, "fan_in", "truncated_normal"), initializers.zeros)),
    "fan_in": (1.0, lambda s, _: (initializers.variance_scaling(s, "fan_in", "uniform"), initializers.zeros)),
}


def initializer(name: str, fan_in: int) -> tuple[Callable, Callable]:
    """Kernel and bias initialisers of "name" or "name:scale", see `INITIALIZERS`.

    Raises: UnknownName; ConfigError when the scale is not a number.
    """
    name, _, scale = name.partition(":")
    default, make = choose("initialiser", name, INITIALIZERS)
    try:
        return make(float(scale or default), fan_in)
    except ValueError as error:
        raise ConfigError(f"initialiser '{name}:{scale}': write it as {name}:NUMBER") from error


def float_dtype() -> jnp.dtype:
    """float32, or float64 where x64 is on."""
    return jnp.result_type(float)


def dense(x: Array, size: int, weights: str = "torch") -> Array:
    """A named-initialiser Dense inside a compact module: f32[..., in] -> f32[..., size]."""
    if size < 1:
        raise ConfigError(f"a layer of {size} units: every size must be at least 1")
    kernel, bias = initializer(weights, x.shape[-1])
    return nn.Dense(size, kernel_init=kernel, bias_init=bias, param_dtype=float_dtype())(x)


def layer_norm(x: Array, eps: float) -> Array:
    """LayerNorm over the last axis inside a compact module, with the variance taken about the mean."""
    return nn.LayerNorm(epsilon=eps, use_fast_variance=False, param_dtype=float_dtype())(x)


class MLP(nn.Module):
    """Dense layers of the given sizes on the concatenated inputs: f32[..., in] -> f32[..., sizes[-1]].

    All layers but the last are followed by the activation, with a LayerNorm "before" or "after" it where asked, and
    then by dropout where `apply` is given `rngs={"dropout": key}`.
    """

    sizes: tuple[int, ...]
    activation: str = "relu"
    final: str = "identity"  # activation of the last layer
    norm: str = "none"  # none, before (torch's and CORL's order) or after (jaxrl's, OGBench's and ReBRAC's)
    norm_eps: float = 1e-5
    weights: str = "torch"  # initialiser, see `INITIALIZERS`
    head_weights: str = ""  # of the last layer; empty: as the others
    dropout: float = 0.0  # share of hidden units that are dropped; the others grow by 1 / (1 - dropout)

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        act, final = choose("activation", self.activation, ACTIVATIONS), choose("activation", self.final, ACTIVATIONS)
        place = choose("place of the LayerNorm", self.norm, {"none": 0, "before": 1, "after": 2})
        x = inputs[0] if len(inputs) == 1 else jnp.concatenate(inputs, axis=-1)
        for size in self.sizes[:-1]:
            x = dense(x, size, self.weights)
            x = layer_norm(x, self.norm_eps) if place == 1 else x
            x = act(x)
            x = layer_norm(x, self.norm_eps) if place == 2 else x
            x = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(x)
        return final(dense(x, self.sizes[-1], self.head_weights or self.weights))


class ResidualMLP(nn.Module):
    """Dense, blocks y + L2(act(N2(L1(act(N1(y)))))), Dense: f32[..., in] -> f32[..., sizes[-1]].

    `sizes` is (h, ..., h, out) with m hidden entries, m odd, which make (m - 1) / 2 blocks; `norm` puts the
    LayerNorms N1 and N2 in.  Nothing activates outside the blocks.  Reference: DPPO, arXiv:2409.00588.
    Raises: ConfigError when m is even or the hidden sizes differ.
    """

    sizes: tuple[int, ...]
    activation: str = "relu"
    final: str = "identity"
    norm: bool = False
    norm_eps: float = 1e-6
    weights: str = "torch"  # initialiser, see `INITIALIZERS`
    head_weights: str = ""

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        act, final = choose("activation", self.activation, ACTIVATIONS), choose("activation", self.final, ACTIVATIONS)
        *hidden, out = self.sizes
        if len(hidden) % 2 == 0 or len(set(hidden)) != 1:
            raise ConfigError(f"a residual MLP needs an odd number of equal hidden sizes, not {tuple(hidden)}")
        x = inputs[0] if len(inputs) == 1 else jnp.concatenate(inputs, axis=-1)
        x = dense(x, hidden[0], self.weights)
        for _ in range(len(hidden) // 2):
            y = x
            for _ in range(2):
                y = layer_norm(y, self.norm_eps) if self.norm else y
                y = dense(act(y), hidden[0], self.weights)
            x = x + y
        return final(dense(x, out, self.head_weights or self.weights))


def sinusoidal(u: Array, dim: int) -> Array:
    """Embedding of scalars, f32[...] -> f32[..., dim]: [sin(u w), cos(u w)], w_i = 10000^(-i/(dim/2 - 1)).

    Flow networks feed the time in [0, 1] unscaled, diffusion networks the step's integer.
    """
    if dim < 4 or dim % 2:
        raise ConfigError(f"a sinusoidal embedding needs an even size of at least 4, not {dim}")
    u = jnp.asarray(u, float_dtype())
    half = dim // 2
    angle = u[..., None] * jnp.exp(jnp.arange(half) * (-math.log(10000.0) / (half - 1)))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class Denoised(NamedTuple):
    """What a `Denoiser` says of noisy chunks, and what it made of time and state."""

    out: Array  # f32[..., H, A] velocity, noise or clean chunk, by what it was trained for
    time: Array  # f32[..., E] embedding of the time (and of the span)
    cond: Array  # f32[..., C] encoding of the state


class Denoiser(nn.Module):
    """Network of flow and diffusion policies: (x f32[B, ..., H, A], state f32[B, S], t f32[...]) -> Denoised.

    The time's sinusoid goes through Dense, Mish, Dense; the state through a plain MLP where `cond` has sizes; then one
    body on [x, time, cond].  With `combine` it also reads a span: both sinusoids are embedded together, and join the
    state's encoding by add or multiply (of one width) or concat.  "alone" is the state's encoding and nothing else.
    Times broadcast against x's leading axes.
    Reference: the networks of DPPO (arXiv:2409.00588) and of ReinFlow (arXiv:2505.22094).
    Raises: ConfigError for add or multiply of unlike widths; UnknownName.
    """

    hidden: tuple[int, ...] = (512, 512, 512)
    activation: str = "relu"
    residual: bool = True
    time_dim: int = 16
    cond: tuple[int, ...] = ()
    combine: str = "none"  # none, add, multiply, concat, alone

    @nn.compact
    def __call__(self, x: Array, state: Array, t: Array, span: Array | None = None) -> Denoised:
        choose("combination", self.combine, dict.fromkeys(("none", "add", "multiply", "concat", "alone")))
        flat = x.reshape(*x.shape[:-2], -1)
        cond = MLP(self.cond, self.activation)(state) if self.cond else state
        cond = cond.reshape(len(x), *[1] * (flat.ndim - 2), -1)
        time = jnp.zeros(0, x.dtype) if self.combine == "alone" else self._time(t, span)
        time, cond = (jnp.broadcast_to(u, (*flat.shape[:-1], u.shape[-1])) for u in (time, cond))
        joint = {"none": [flat, time, cond], "concat": [flat, time, cond], "alone": [cond]}.get(self.combine)
        if joint is None:
            if time.shape != cond.shape:
                raise ConfigError(
                    f"to {self.combine} time and state, their codes must be of one width: time_dim is {self.time_dim}, "
                    f"the state's code has {cond.shape[-1]}; make the last size in cond {self.time_dim}"
                )
            joint = [flat, time + cond if self.combine == "add" else time * cond]
        body = ResidualMLP if self.residual else MLP
        out = body((*self.hidden, flat.shape[-1]), self.activation)(*joint)
        return Denoised(out.reshape(x.shape), time, cond)

    def _time(self, t: Array, span: Array | None) -> Array:
        mish = ACTIVATIONS["mish"]
        if self.combine == "none":
            return dense(mish(dense(sinusoidal(t, self.time_dim), 2 * self.time_dim)), self.time_dim)
        both = jnp.broadcast_arrays(sinusoidal(t, self.time_dim), sinusoidal(span, self.time_dim))
        return dense(mish(dense(jnp.concatenate(both, axis=-1), self.time_dim)), self.time_dim)


class Net(NamedTuple):
    """Pure functions of a network: init(key, *inputs) -> params, apply(params, *inputs) -> output."""

    init: Callable[..., PyTree]
    apply: Callable[..., Array]


def plain(module: nn.Module) -> Net:
    """A module as it is."""
    return Net(module.init, module.apply)


def ensemble(module: nn.Module, size: int) -> Net:
    """E independent copies on the same inputs: every parameter and the output carry a leading axis E."""

    def init(key: Key, *inputs: Array) -> PyTree:
        return jax.vmap(lambda key: module.init(key, *inputs))(jax.random.split(key, size))

    def apply(params: PyTree, *inputs: Array) -> Array:
        return jax.vmap(lambda params: module.apply(params, *inputs))(params)

    return Net(init, apply)


def member(params: PyTree, i: int) -> PyTree:
    """Parameters of the i-th copy in an ensemble, for the module itself."""
    return jax.tree.map(lambda x: x[i], params)


def unit_length(x: Array) -> Array:
    """x f32[..., D] scaled to length sqrt(D); 0 stays 0."""
    return x * (math.sqrt(x.shape[-1]) / jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12)))


class Impala(nn.Module):
    """IMPALA encoder: uint8[..., H, W, C] -> f32[..., width].

    Per stack: 3x3 convolution, 3x3 max-pool of stride 2, residual blocks x + conv(relu(conv(relu(x)))).
    Then relu, flatten, Dense, GELU (tanh approximation).  Reference: Espeholt et al. 2018; sizes as OGBench's.
    """

    stacks: tuple[int, ...] = (16, 32, 32)
    blocks: int = 2
    width: int = 512

    @nn.compact
    def __call__(self, image: Array) -> Array:
        def conv(x, channels):
            kernel = initializers.xavier_uniform()
            return nn.Conv(channels, (3, 3), padding="SAME", kernel_init=kernel, param_dtype=float_dtype())(x)

        x = jnp.asarray(image, float_dtype()) / 255
        for channels in self.stacks:
            x = nn.max_pool(conv(x, channels), (3, 3), strides=(2, 2), padding="SAME")
            for _ in range(self.blocks):
                x = x + conv(nn.relu(conv(nn.relu(x), channels)), channels)
        x = nn.relu(x).reshape(*x.shape[:-3], -1)
        return ACTIVATIONS["gelu_tanh"](dense(x, self.width, "glorot"))


ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "impala": Impala,
    "impala_small": partial(Impala, blocks=1),
    "impala_large": partial(Impala, stacks=(64, 128, 128), width=1024),
    "impala_debug": partial(Impala, stacks=(4, 4), blocks=1),
}


def encoder(name: str) -> nn.Module:
    """A pixel encoder by name.  Raises: UnknownName."""
    return choose("encoder", name, ENCODERS)()


def behind(module: nn.Module | None, net: Net, images: int) -> Net:
    """A network that reads its first `images` inputs, joined along their last axis, through an encoder.

    Its params are {"encoder", "net"}.  Without an encoder it is the network itself, which reads states as they are.
    """
    if module is None:
        return net

    def code(params: PyTree, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        return module.apply(params, jnp.concatenate(inputs[:images], axis=-1)), *inputs[images:]

    def init(key: Key, *inputs: Array) -> PyTree:
        own, rest = jax.random.split(key)
        params = module.init(own, jnp.concatenate(inputs[:images], axis=-1))
        return {"encoder": params, "net": net.init(rest, *code(params, inputs))}

    return Net(init, lambda params, *inputs: net.apply(params["net"], *code(params["encoder"], inputs)))
