"""Networks against NumPy, their initialisers against their bounds, and names that do not exist."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from core.config import ConfigError, UnknownName
from core.networks import (
    ACTIVATIONS,
    MLP,
    Denoiser,
    Impala,
    ResidualMLP,
    encoder,
    ensemble,
    initializer,
    member,
    sinusoidal,
)

KEY = jax.random.key(0)
FORMULAS = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "identity": lambda x: x,
}


def randomised(params, seed=1):
    """The same tree with every leaf random, so that scales and biases of LayerNorms count."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params)


def numpy_dense(params, i, x):
    layer = params["params"][f"Dense_{i}"]
    return x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])


def numpy_norm(params, i, x, eps):
    layer = params["params"][f"LayerNorm_{i}"]
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return normal * np.asarray(layer["scale"]) + np.asarray(layer["bias"])


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_activation(name):
    x = np.linspace(-6, 6, 49)
    assert set(FORMULAS) == set(ACTIVATIONS)
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), FORMULAS[name](x), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("norm", ["none", "before", "after"])
def test_mlp_is_its_formula(norm):
    a, b = (np.random.default_rng(0).normal(size=(5, n)).astype(np.float32) for n in (3, 4))
    net = MLP((8, 6, 2), "silu", final="tanh", norm=norm, norm_eps=1e-2)
    params = randomised(net.init(KEY, a, b))
    x = np.concatenate([a, b], -1)
    for i in range(2):
        x = numpy_dense(params, i, x)
        x = numpy_norm(params, i, x, 1e-2) if norm == "before" else x
        x = FORMULAS["silu"](x)
        x = numpy_norm(params, i, x, 1e-2) if norm == "after" else x
    np.testing.assert_allclose(net.apply(params, a, b), np.tanh(numpy_dense(params, 2, x)), rtol=1e-4, atol=1e-4)


def test_dropout_is_behind_each_hidden_activation_and_needs_a_key():
    """A quarter of the hidden units is 0, the others are 4/3 as large; without a key, or at 0, nothing is dropped."""
    x = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    plain, net = MLP((40, 30, 2)), MLP((40, 30, 2), dropout=0.25)
    params = randomised(net.init(KEY, x))
    assert jax.tree.structure(params) == jax.tree.structure(plain.init(KEY, x))
    whole = plain.apply(params, x)
    np.testing.assert_array_equal(net.apply(params, x), whole)
    np.testing.assert_array_equal(plain.apply(params, x, rngs={"dropout": KEY}), whole)
    out, kept = net.apply(params, x, rngs={"dropout": KEY}, capture_intermediates=True)
    hidden = [kept["intermediates"][f"Dropout_{i}"]["__call__"][0] for i in range(2)]
    for i, before in enumerate((x, hidden[0])):
        live = np.maximum(numpy_dense(params, i, before), 0)
        dropped = (hidden[i] == 0) & (live > 1e-3)
        assert dropped.sum() / (live > 1e-3).sum() == pytest.approx(0.25, abs=0.03)
        np.testing.assert_allclose(hidden[i], np.where(hidden[i] > 0, live / 0.75, 0), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(out, numpy_dense(params, 2, hidden[1]), rtol=1e-4, atol=1e-3)
    other = net.apply(params, x, rngs={"dropout": jax.random.key(1)})
    assert np.abs(other - out).max() > 0.1


@pytest.mark.parametrize("norm", [False, True])
def test_residual_mlp_is_its_formula(norm):
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    net = ResidualMLP((8, 8, 8, 8, 8, 2), "mish", norm=norm)
    params = randomised(net.init(KEY, x))
    y, dense, norms = numpy_dense(params, 0, x), 1, 0
    for _ in range(2):
        z = y
        for _ in range(2):
            z = numpy_norm(params, norms, z, 1e-6) if norm else z
            z = numpy_dense(params, dense, FORMULAS["mish"](z))
            dense, norms = dense + 1, norms + 1
        y = y + z
    np.testing.assert_allclose(net.apply(params, x), numpy_dense(params, 5, y), rtol=1e-3, atol=1e-3)


def count(params):
    return sum(x.size for x in jax.tree.leaves(params))


def test_parameter_counts_of_the_authors():
    """flow: the hopper critic has 134,913 parameters, the kitchen critic 147,457."""
    for width, parameters in ((11, 134_913), (60, 147_457)):
        assert count(jax.eval_shape(ResidualMLP((256, 256, 256, 1), "mish").init, KEY, jnp.zeros(width))) == parameters


@pytest.mark.parametrize(
    ("net", "width", "action", "parameters"),
    [
        (Denoiser(), 11, 3, 553_020),  # rectified flow, Hopper
        (Denoiser(), 17, 6, 568_392),  # Walker2d
        (Denoiser(), 376, 17, 797_300),  # Humanoid
        (Denoiser((256, 256, 256), "mish", cond=(32, 16), combine="add"), 60, 9, 157_684),  # shortcut, Kitchen
    ],
)
def test_parameter_counts_of_the_authors_policies(net, width, action, parameters):
    """flow: chunks of 4 actions, one observation."""
    shapes = jax.eval_shape(net.init, KEY, jnp.zeros((1, 4, action)), jnp.zeros((1, width)), jnp.ones(1), jnp.ones(1))
    assert count(shapes) == parameters


def numpy_sinusoid(u, dim):
    w = np.exp(-np.arange(dim // 2) * np.log(10000) / (dim // 2 - 1))
    return np.concatenate([np.sin(u[..., None] * w), np.cos(u[..., None] * w)], -1)


@pytest.mark.parametrize(
    ("combine", "residual", "cond"),
    [("none", True, ()), ("none", False, (5,)), ("add", True, (5, 6)), ("multiply", False, (6,)), ("concat", True, ())],
)
def test_denoiser_is_its_formula(combine, residual, cond):
    """At K places of each row's chain at once, f32[B, K, H, A], with times that all rows share."""
    rng = np.random.default_rng(0)
    x, state = rng.normal(size=(3, 4, 2, 2)).astype(np.float32), rng.normal(size=(3, 7)).astype(np.float32)
    t, span = rng.uniform(size=(1, 4)).astype(np.float32), rng.uniform(size=(1, 4)).astype(np.float32)
    net = Denoiser((8, 8, 8), "silu", residual, 6, cond, combine)
    params = randomised(jax.eval_shape(net.init, KEY, x, state, t, span))
    inside = lambda name: {"params": params["params"][name]}  # noqa: E731
    code = numpy_sinusoid(t, 6)
    code = code if combine == "none" else np.concatenate([code, numpy_sinusoid(span, 6)], -1)
    code = numpy_dense(params, 1, FORMULAS["mish"](numpy_dense(params, 0, code)))
    seen = state
    for i in range(len(cond)):
        seen = numpy_dense(inside("MLP_0"), i, seen)
        seen = FORMULAS["silu"](seen) if i < len(cond) - 1 else seen
    code, seen = np.broadcast_to(code, (3, 4, 6)), np.broadcast_to(seen[:, None], (3, 4, seen.shape[-1]))
    joint = {"add": lambda: [code + seen], "multiply": lambda: [code * seen]}.get(combine, lambda: [code, seen])()
    y = np.concatenate([x.reshape(3, 4, 4), *joint], -1)
    if residual:
        of = inside("ResidualMLP_0")
        y = numpy_dense(of, 0, y)
        y = y + numpy_dense(of, 2, FORMULAS["silu"](numpy_dense(of, 1, FORMULAS["silu"](y))))
    else:
        of = inside("MLP_1")
        for i in range(3):
            y = FORMULAS["silu"](numpy_dense(of, i, y))
    ours = jax.jit(net.apply)(params, x, state, t, span)
    np.testing.assert_allclose(ours.out, numpy_dense(of, 3, y).reshape(x.shape), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(ours.time, code, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours.cond, seen, rtol=1e-4, atol=1e-4)
    alone = jax.jit(net.apply)(params, x[:, 2], state, t[0, 2], span[0, 2])
    np.testing.assert_allclose(alone.out, ours.out[:, 2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("combine", ["add", "multiply"])
def test_codes_of_unlike_width_cannot_be_combined(combine):
    for cond in ((), (8, 5)):
        net = Denoiser((8, 8, 8), time_dim=6, cond=cond, combine=combine)
        with pytest.raises(ConfigError, match=rf"to {combine} time and state.*make the last size in cond 6"):
            jax.eval_shape(net.init, KEY, jnp.zeros((1, 2, 2)), jnp.zeros((1, 3)), jnp.ones(1), jnp.ones(1))


@pytest.mark.parametrize("hidden", [(8, 8), (8, 4, 8), ()])
def test_residual_mlp_refuses_other_shapes(hidden):
    with pytest.raises(ConfigError, match="odd number"):
        ResidualMLP((*hidden, 1)).init(KEY, jnp.zeros(3))


def layer(weights, fan_in=400, size=300):
    return MLP((size,), weights=weights).init(KEY, jnp.zeros(fan_in))["params"]["Dense_0"]


@pytest.mark.parametrize(
    ("weights", "kernel", "bias"),
    [
        ("torch", 1 / 20, 1 / 20),
        ("uniform:0.003", 0.003, 0.003),
        ("torch_bias:0.1", 1 / 20, 0.1),
        ("glorot", np.sqrt(6 / 700), 0),
        ("glorot:0.01", np.sqrt(0.06 / 700), 0),
        ("fan_in:0.01", np.sqrt(0.03 / 400), 0),
    ],
)
def test_uniform_initialisers_fill_their_range(weights, kernel, bias):
    made = layer(weights)
    assert np.abs(made["kernel"]).max() == pytest.approx(kernel, rel=1e-3)
    assert np.std(made["kernel"]) == pytest.approx(kernel / np.sqrt(3), rel=2e-2)
    assert np.abs(made["bias"]).max() == pytest.approx(bias, rel=5e-2)
    if weights == "torch_bias:0.1":
        assert np.ptp(made["bias"]) == 0


def test_orthogonal_matrices_of_several_seeds_are_made_one_after_the_other():
    kernel, _ = initializer("orthogonal", 8)
    make = lambda key: kernel(key, (8, 4), jnp.float32)  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 3)
    program = jax.jit(jax.vmap(make)).lower(keys).as_text()
    factored = [line for line in program.splitlines() if "geqrf" in line]
    assert factored
    assert not any("3x8x4" in line for line in factored)
    found = jax.jit(jax.vmap(make))(keys)
    np.testing.assert_allclose(found, [make(key) for key in keys], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1].T @ found[1], 2 * np.eye(4), atol=1e-5)


def test_orthogonal_and_lecun():
    kernel = np.asarray(layer("orthogonal")["kernel"])
    np.testing.assert_allclose(kernel.T @ kernel, 2 * np.eye(300), atol=1e-4)
    kernel = np.asarray(layer("orthogonal:0.01")["kernel"])
    np.testing.assert_allclose(kernel.T @ kernel, 1e-4 * np.eye(300), atol=1e-8)
    assert np.std(layer("lecun")["kernel"]) == pytest.approx(1 / 20, rel=2e-2)


def test_head_has_its_own_initialiser():
    params = MLP((64, 3), weights="lecun", head_weights="uniform:0.001").init(KEY, jnp.zeros(9))["params"]
    assert np.abs(params["Dense_1"]["kernel"]).max() <= 1e-3
    assert np.abs(params["Dense_0"]["kernel"]).max() > 0.1


def test_sinusoidal():
    u, w = np.array([0.0, 0.25, 1.0, 19.0]), np.exp(-np.arange(4) * np.log(10000) / 3)
    wanted = np.concatenate([np.sin(u[:, None] * w), np.cos(u[:, None] * w)], -1)
    np.testing.assert_allclose(sinusoidal(jnp.asarray(u), 8), wanted, atol=2e-6)
    np.testing.assert_allclose(sinusoidal(jnp.asarray([19]), 8), wanted[3:], atol=2e-6)
    for dim in (2, 7):
        with pytest.raises(ConfigError, match="even size"):
            sinusoidal(jnp.zeros(()), dim)


def test_ensemble_members_are_independent_copies():
    x, module = jnp.ones((5, 3)), MLP((8, 1))
    net = ensemble(module, 4)
    params = jax.jit(net.init)(KEY, x)
    out = jax.jit(net.apply)(params, x)
    assert out.shape == (4, 5, 1)
    assert all(leaf.shape[0] == 4 for leaf in jax.tree.leaves(params))
    assert len(np.unique(np.asarray(out[:, 0, 0]))) == 4
    for i in range(4):
        np.testing.assert_allclose(out[i], module.apply(member(params, i), x), rtol=1e-5, atol=1e-6)


def test_impala_is_its_formula():
    image = np.random.default_rng(0).integers(0, 256, (2, 9, 8, 3), np.uint8)
    net = Impala(stacks=(4, 5), blocks=1, width=7)
    params = randomised(jax.jit(net.init)(KEY, image))

    def conv(i, x):
        layer = params["params"][f"Conv_{i}"]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        return np.einsum("nhwcij,ijco->nhwo", patches, np.asarray(layer["kernel"])) + np.asarray(layer["bias"])

    def pool(x):
        pads = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in x.shape[1:3]]
        sides = [(p // 2, p - p // 2) for p in pads]
        padded = np.pad(x, ((0, 0), *sides, (0, 0)), constant_values=-np.inf)
        return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2)).max((-1, -2))[:, ::2, ::2]

    x, relu = image / 255, FORMULAS["relu"]
    for stack in range(2):
        x = pool(conv(3 * stack, x))
        x = x + conv(3 * stack + 2, relu(conv(3 * stack + 1, relu(x))))
    wanted = FORMULAS["gelu_tanh"](numpy_dense(params, 0, relu(x).reshape(2, -1)))
    np.testing.assert_allclose(jax.jit(net.apply)(params, image), wanted, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("name", "convolutions", "flat", "width"),
    [
        ("impala", 15, 2048, 512),
        ("impala_small", 9, 2048, 512),
        ("impala_large", 15, 8192, 1024),
        ("impala_debug", 6, 1024, 512),
    ],
)
def test_encoder_sizes(name, convolutions, flat, width):
    shapes = jax.eval_shape(encoder(name).init, KEY, jnp.zeros((1, 64, 64, 9), jnp.uint8))["params"]
    assert sum(key.startswith("Conv") for key in shapes) == convolutions
    assert shapes["Dense_0"]["kernel"].shape == (flat, width)
    assert shapes["Conv_0"]["kernel"].shape[2] == 9


@pytest.mark.parametrize(
    "make",
    [
        lambda: MLP((2,), activation="rellu").init(KEY, jnp.zeros(3)),
        lambda: MLP((2,), final="tan").init(KEY, jnp.zeros(3)),
        lambda: MLP((2,), norm="befor").init(KEY, jnp.zeros(3)),
        lambda: MLP((2,), weights="ortogonal").init(KEY, jnp.zeros(3)),
        lambda: encoder("impala_smal"),
        lambda: Denoiser(combine="concate").init(KEY, jnp.zeros((1, 2, 2)), jnp.zeros((1, 3)), jnp.ones(1)),
    ],
)
def test_unknown_names(make):
    with pytest.raises(UnknownName, match=r"nearest: (relu|tanh|before|orthogonal|impala_small|concat)"):
        make()


def test_a_scale_that_is_no_number():
    with pytest.raises(ConfigError, match="orthogonal:NUMBER"):
        initializer("orthogonal:big", 4)


@pytest.mark.parametrize("x64", [False, True])
def test_dtype_follows_x64(x64):
    with jax.enable_x64(x64):
        dtype = jnp.dtype("float64" if x64 else "float32")
        key, x = jax.random.key(0), jnp.zeros((2, 3))
        nets = [(MLP((4, 1), norm="after"), x), (ResidualMLP((4, 4, 4, 1), norm=True), x)]
        nets.append((encoder("impala_debug"), jnp.zeros((2, 8, 8, 3), jnp.uint8)))
        for weights in ("torch", "uniform", "torch_bias", "orthogonal", "glorot", "lecun", "fan_in"):
            nets.append((MLP((4,), weights=weights), x))
        for net, given in nets:
            params = jax.eval_shape(net.init, key, given)
            assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {dtype}
            assert jax.eval_shape(net.apply, params, given).dtype == dtype
        given = jnp.zeros((2, 2, 3)), x, jnp.zeros(2)
        assert {u.dtype for u in jax.tree.leaves(jax.eval_shape(Denoiser().init_with_output, key, *given))} == {dtype}
        assert sinusoidal(jnp.zeros(3), 8).dtype == dtype
