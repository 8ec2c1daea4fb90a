"""The runner passes on the stored cases and on new ones, misses what was changed, and refuses what it cannot check."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.golden import d4rl, oracle_iql
from tests.golden.__main__ import check, main
from tests.golden.case import HYPER, Uncheckable, compare
from tests.golden.oracle import write
from tests.golden.oracle_chains import write_dppo, write_reinflow
from tests.golden.oracle_critics import write_cql, write_rebrac
from tests.golden.oracle_goals import write as write_goals
from tests.golden.oracle_sampler import write as write_draws
from tests.golden.oracle_weights import write_iql

HERE = Path(__file__).parent
FILES = sorted([*HERE.glob("*.npz"), *HERE.glob("*.json")])


def altered(tmp_path, name, change):
    """A copy of a stored case after `change(arrays)`."""
    with np.load(HERE / name) as file:
        arrays = {key: np.array(file[key]) for key in file.files}
    change(arrays)
    np.savez(tmp_path / name, **arrays)
    return tmp_path / name


def said(**hyper):
    """A change of hyper-parameters in the JSON string."""

    def change(arrays):
        arrays[HYPER] = np.asarray(json.dumps({**json.loads(str(arrays[HYPER])), **hyper}))

    return change


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_stored_cases_pass(path, capsys):
    assert check(path) == 0
    assert "0 missed, 0 problems" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_action": 2.0, "noise_unit": 2.0, "period": 2, "actor_hidden": (6, 6)},
        {"max_action": 1.0, "period": 1, "batch": 5, "state_dim": 3, "action_dim": 1, "alpha": 40.0, "steps": 3},
    ],
)
def test_unseen_cases_pass(tmp_path, options):
    """Other depths, widths, bounds and delays, by NumPy with gradients written by hand."""
    assert check(write(tmp_path / "corl_td3bc_other.npz", **options)) == 0


@pytest.mark.parametrize(
    ("name", "layout", "options"),
    [
        ("corl_iql", "corl", {"lr": 1e-3}),
        ("corl_iql", "corl", {"deterministic": True, "kappa": 0.6, "actor_hidden": (5,), "action_dim": 1}),
        ("official_iql_jax", "official", {"beta": 10.0, "kappa": 0.9, "critic_hidden": (4, 5, 6)}),
        ("dw_iql_jax", "dw", {}),
        ("dw_iql_jax", "dw", {"flow": 0.0, "kl": 0.0, "ratio_hidden": (5,), "steps": 2, "seed": 1}),
    ],
    ids=["corl", "deterministic", "authors", "weighted", "weighted without flow"],
)
def test_unseen_iql_passes(tmp_path, name, layout, options):
    """Other depths and widths in each network, a limit that bites, a rate that falls, by NumPy."""
    assert check(oracle_iql.write(tmp_path / f"{name}_other.npz", layout, **options)) == 0


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (
            write_cql,
            {
                "lagrange": True, "max_backup": True, "target_gap": 0.8, "clip": (2.0, 2.2), "temp": 0.5,
                "critic_hidden": ((6, 5, 5, 4, 4), (6, 5, 4)), "actor_hidden": (7,),
            },
        ),
        (
            write_cql,
            {
                "importance": False, "backup_entropy": True, "learn_alpha": False, "multiplier": 0.5, "seed": 4,
                "critic_hidden": ((6,), (6,)),
            },
        ),
        (write_rebrac, {}),
        (
            write_rebrac,
            {
                "critic_ln": False, "actor_ln": True, "critic_hidden": (6, 5, 4), "normalize_q": False, "action_dim": 1,
            },
        ),
    ],
    ids=["antmaze", "kitchen", "", "plain critics"],
)  # fmt: skip
def test_unseen_critics_pass(tmp_path, write, options):
    """CQL and ReBRAC by NumPy, gradients by hand: other depths, of each critic its own, and other options."""
    assert check(write(tmp_path / f"corl_{write.__name__[6:]}_other.npz", **options)) == 0


@pytest.mark.parametrize(
    ("algo", "options"),
    [
        ("crl", {"alpha": 3.0}),
        ("gciql", {"discrete": True, "alpha": 3.0}),
        ("qrl", {"latent_dim": 8}),
        ("hiql", {"low_actor_rep_grad": True, "low_alpha": 60.0}),
        ("hiql", {"pixels": True, "rows": 5, "low_actor_rep_grad": True, "value_hidden_dims": [6], "rep_dim": 3}),
        ("ota", {"discount": 0.995, "high_discount": 0.9}),
    ],
    ids=["crl awr", "gciql discrete", "qrl mrn", "hiql shared", "hiql pictures", "ota"],
)
def test_unseen_goal_conditioned_pass(tmp_path, algo, options):
    """Other depths, widths and rates, in float64 from the equations."""
    assert check(write_goals(tmp_path / f"{algo}_other.npz", algo, **options)) == 0


def test_unseen_draws_pass(tmp_path):
    """Of options, in trajectories of other lengths."""
    assert check(write_draws(tmp_path / "goal_sampler_other.npz")) == 0


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (
            write_reinflow,
            {
                "inference_steps": 8, "ft_denoising_steps": 3, "noise_scheduler_type": "vp", "use_bc_loss": True,
                "normalize_denoising_horizon": False, "normalize_act_space_dimension": False, "bc_coeff": 0.1,
                "account_for_initial_stochasticity": False, "logprob_min": -40.0, "logprob_max": 40.0,
            },
        ),
        (
            write_reinflow,
            {
                "ft_denoising_steps": 2, "noise_scheduler_type": "lin", "min_logprob_denoising_std": 0.04,
                "min_sampling_denoising_std": 0.05, "learn_explore_time_embedding": True, "time_dim_explore": 3,
                "logprob_min": -0.1, "logprob_max": 0.8,
            },
        ),
        (
            write_reinflow,
            {
                "kind": "shortcut", "embed_combination": "add", "cond_mlp_dims": [5, 4], "inference_steps": 2,
                "ft_denoising_steps": 2, "clip_intermediate_actions": False,
            },
        ),
        (
            write_dppo,
            {
                "denoising_steps": 20, "ddim_steps": 4, "ft_denoising_steps": 4, "use_ddim": True, "eta": 1.0,
                "eps_clip_value": 0.8,
            },
        ),
        (
            write_dppo,
            {
                "denoising_steps": 10, "ft_denoising_steps": 4, "use_bc_loss": True, "norm_adv": False,
                "reward_horizon": 1, "cond_mlp_dims": [5, 3], "residual": False, "mlp_dims": [6, 6],
            },
        ),
    ],
    ids=["vp W2", "lin table", "add", "ddim", "imitation"],
)  # fmt: skip
def test_unseen_chains_pass(tmp_path, write, options):
    """By NumPy, in float64, with gradients by differences: options that the stored files do not have."""
    assert check(write(tmp_path / f"{write.__name__[6:]}_other.npz", **options)) == 0


@pytest.mark.parametrize(
    ("name", "key", "factor"),
    [
        ("d4rl_flat_to_transitions.npz", "d4rl_qlearning.next_observations", 1 + 1e-6),
        ("d4rl_flat_to_transitions.npz", "d4rl_sequence.returns", 1 + 1e-4),
        ("corl_td3bc.npz", "step0.target_q", 1 + 1e-8),
        ("corl_td3bc.npz", "step1.actor_loss", 1 + 1e-8),
        ("corl_td3bc.npz", "step3.critic_2_target.net.2.bias", 1 + 1e-8),
        ("corl_td3bc.npz", "hp.tau", 1.01),
        ("corl_td3bc.npz", "batch.r", 1.01),
        ("corl_td3bc.npz", "hp.noise_clip", 0.5),
        ("corl_iql_gaussian.npz", "step0.adv_old_v", 1 + 1e-5),
        ("corl_iql_gaussian.npz", "step1.actor_lr_before", 1 + 1e-5),
        ("corl_iql_gaussian.npz", "step2.actor.log_std", 1 + 1e-4),
        ("corl_iql_gaussian.npz", "hp.max_steps", 2),
        ("corl_iql_gaussian.npz", "hp.beta", 1.01),
        ("corl_iql_deterministic_antmaze.npz", "step2.q_target.q2.net.2.weight", 1 + 1e-5),
        ("corl_iql_deterministic_antmaze.npz", "step0.actor_loss", 1 + 1e-5),
        ("corl_iql_deterministic_antmaze.npz", "batch.r", 1.01),
        ("official_iql_jax.npz", "step1.adv", 1 + 1e-5),
        ("official_iql_jax.npz", "step0.q2", 1 + 1e-5),
        ("official_iql_jax.npz", "step2.actor.Dense_0.kernel", 1 + 1e-5),
        ("official_iql_jax.npz", "hp.expectile", 1.01),
        ("dw_iql_jax.npz", "step0.weights", 1 + 1e-5),
        ("dw_iql_jax.npz", "step1.batch.normalized_rewards", 1.01),
        ("dw_iql_jax.npz", "step1.flow_consistency_loss", 1 + 1e-5),
        ("dw_iql_jax.npz", "step1.exp_a", 1 + 1e-5),
        ("dw_iql_jax.npz", "step2.discriminator.MLP_1.Dense_1.kernel", 1 + 1e-4),
        ("dw_iql_jax.npz", "hp.kl", 1.01),
        ("corl_cql_mujoco.npz", "step0.cql_std_q2", 1 + 1e-8),
        ("corl_cql_mujoco.npz", "step1.critic_2.network.4.weight", 1 + 1e-8),
        ("corl_cql_mujoco.npz", "step0.log_alpha_prime", 1 + 1e-8),
        ("corl_cql_mujoco.npz", "step1.eps_cur", 1.01),
        ("corl_cql_mujoco.npz", "init.actor.log_std_offset.constant", 1.01),
        ("corl_rebrac_mujoco.npz", "step2.bc_mse_policy", 1 + 1e-8),
        ("corl_rebrac_mujoco.npz", "step2.actor_target.params.Dense_1.kernel", 1 + 1e-8),
        ("corl_rebrac_mujoco.npz", "step0.batch.next_actions", 1.01),
        ("corl_reward_norm.npz", "max_return", 1 + 1e-8),
        ("corl_reward_norm.npz", "antmaze_modified", 1.01),
        ("traj_weights_cql_path.npz", "AW.flat_normalized_score", 1.01),
        ("traj_weights_cql_path.npz", "RW.q.rewards", 1.01),
        ("traj_weights_cql_path.npz", "Top_0.1.n", 2),
        ("traj_weights_d3rlpy_path.npz", "AW_0.1", 1 + 1e-4),
        ("traj_weights_d3rlpy_path.npz", "returns", 1.1),
        ("traj_weights_edge.npz", "unequal_lengths.AW_0.2", 1.01),
        ("traj_weights_edge.npz", "heavy.Top_0.1", 2),
        ("util_03_network_blocks.npz", "net_mlp/out", 1 + 1e-4),
        ("util_03_network_blocks.npz", "sinus/8", 1 + 1e-4),
        ("util_03_network_blocks.npz", "net_res_mish_ln/layers.1.norm1.weight", 1.01),
        ("util_03_network_blocks.npz", "noise_net/std", 1 + 1e-4),
        ("util_04_adamw.npz", "adamw_wd1e-2/params", 1 + 1e-4),
        ("bc_01_reflow_uniform.npz", "t", 1.01),
        ("bc_01_reflow_uniform.npz", "loss", 1 + 1e-4),
        ("bc_01_reflow_uniform.npz", "grad_net/mlp_mean.layers.1.l2.weight", 1.01),
        ("bc_02_reflow_logitnormal_plain.npz", "net/cond_mlp.moduleList.0.linear_1.weight", 1.01),
        ("bc_02_reflow_logitnormal_plain.npz", "sample/action_K_noclip", 1 + 1e-4),
        ("bc_05_shortcut_concat.npz", "draw/t_idx", 2),
        ("bc_05_shortcut_concat.npz", "batch/v_target", 1 + 1e-3),
        ("bc_05_shortcut_concat.npz", "grad_net/t_emb.0.bias", 1.01),
        ("bc_06_ddpm_K20_eps.npz", "schedule/ddpm_mu_coef2", 1 + 1e-4),
        ("bc_06_ddpm_K20_eps.npz", "eps", 1.01),
        ("dppo_02_ddpm_K5_ft5_clip_schedule.npz", "sample_train/x_init", 1.01),
        ("dppo_02_ddpm_K5_ft5_clip_schedule.npz", "loss_in/advantages", 1.1),
        ("dppo_02_ddpm_K5_ft5_clip_schedule.npz", "loss_aux/clip_per_sample", 1.01),
        ("dppo_04_ddim_100to5_ft3.npz", "actor_frozen/mlp_mean.layers.0.bias", 1.1),
        ("dppo_04_ddim_100to5_ft3.npz", "schedule/ddim_alphas_prev", 1 + 1e-4),
        ("dppo_06_ddpm_ft1_nan.npz", "grad_actor/mlp_mean.layers.2.bias", 1.01),
        ("reinflow_03_reflow_K1.npz", "sample_train/logprob", 1 + 1e-4),
        ("reinflow_03_reflow_K1.npz", "actor_current/explore_noise_net.mlp_logvar.moduleList.0.linear_1.weight", 1.1),
        ("reinflow_04_shortcut_K2_concat_plainMLP.npz", "loss_in/oldvalues", 1.5),
        ("reinflow_04_shortcut_K2_concat_plainMLP.npz", "grad_critic/Q1.layers.2.bias", 1.01),
        ("reinflow_06_reflow_K3_state_only_noise.npz", "check/mean_ratio_recomputed_vs_sampled", 1 + 1e-4),
        ("reinflow_06_reflow_K3_state_only_noise.npz", "recompute_behavior/entropy_rate", 1 + 1e-4),
        ("util_01_gae_reward_scaling.npz", "gae_scale0_itr1/values", 1.01),
        ("util_01_gae_reward_scaling.npz", "gae_scale1_itr1/rms_count", 1 + 1e-8),
        ("util_01_gae_reward_scaling.npz", "gae_scale1_itr0/last_value", 1.01),
        ("util_02_schedules.npz", "lr/hopper_actor", 1 + 1e-4),
        ("util_02_schedules.npz", "noise/learn_decay_ant/params_max_min_hold_ratio_n", 0.9),
    ],
)
def test_a_changed_array_is_a_miss(tmp_path, name, key, factor):
    def change(arrays):
        arrays[key].reshape(-1)[-1:] *= factor  # a view: one element is enough

    assert check(altered(tmp_path, name, change)) == 1


@pytest.mark.parametrize(
    "options", [{}, {"seed": 1, "episodes": 30, "state_dim": 5}, {"seed": 2, "equal": True}], ids=["", "more", "equal"]
)
def test_unseen_trajectory_weights_pass(tmp_path, options):
    """Transitions whose trajectories must be found, by NumPy; a changed weight of theirs is a miss."""
    path = write_iql(tmp_path / "traj_weights_iql_path_other.npz", **options)
    assert check(path) == 0
    with np.load(path) as file:
        arrays = {key: np.array(file[key]) for key in file.files}
    arrays["rawreward.AW_1.0.p_transition"][-1:] = 0.5
    np.savez(path, **arrays)
    assert check(path) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("restart", [0, 1])
def test_unseen_flat_data_without_timeouts(tmp_path, capsys, dtype, restart):
    """Steps counted on from `restart` behind a row that ended the task: 1 in D4RL's loop, 0 in its description."""
    rng, count, rows = np.random.default_rng(3), 0, []
    raw = {"observations": rng.standard_normal((60, 4)).astype(dtype), "rewards": rng.standard_normal(60).astype(dtype)}
    raw |= {"actions": rng.uniform(-1, 1, (60, 2)).astype(dtype), "terminals": rng.random(60) < 0.1}
    for i in range(59):
        if count == 6:
            count = 0
            continue
        rows.append(i)
        count = restart if raw["terminals"][i] else count + 1
    arrays = {f"raw.{key}": value for key, value in raw.items()} | {"hp.max_episode_steps": np.asarray(7)}
    for key, value in raw.items():
        arrays[f"d4rl_qlearning.{key}"] = value[rows] if key == "terminals" else value[rows].astype(np.float32)
    arrays["d4rl_qlearning.next_observations"] = raw["observations"][np.add(rows, 1)].astype(np.float32)
    path = tmp_path / "d4rl_flat_to_transitions_other.npz"
    np.savez(path, **arrays)
    assert check(path) == 0
    assert ("as D4RL does" if restart else "from 0 in each episode") in capsys.readouterr().out
    del arrays["hp.max_episode_steps"]
    np.savez(path, **arrays)
    assert check(path) == 2
    assert "the steps of an episode must be known" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "code"),
    [({}, 0), ({"hopper-medium-v2": [-20.27, 3234.3]}, 1), ({"swimmer-medium-v2": [0, 1]}, 2), ({"a": "b"}, 2)],
)
def test_scores_of_another_file(tmp_path, change, code):
    path = tmp_path / "d4rl_ref_scores_other.json"
    path.write_text(json.dumps({"kitchen-mixed-v0": [0, 4], **change}))
    assert check(path) == code


@pytest.mark.parametrize(
    ("change", "code"),
    [(lambda d: {"action": d.action * np.float32(0.999)}, 1), (lambda d: {"row": d.row[:-1]}, 2)],
    ids=["another action", "a transition less"],
)
def test_a_reader_that_differs_from_the_conversion_is_found(monkeypatch, capsys, change, code):
    read = d4rl.datasets.read

    def other(path):
        dataset, card = read(path)
        return dataset._replace(**change(dataset)), card

    monkeypatch.setattr(d4rl.datasets, "read", other)
    assert check(HERE / "d4rl_flat_to_transitions.npz") == code
    assert "datasets.read" in capsys.readouterr().out


def test_nan_is_a_miss(tmp_path):
    def change(arrays):
        arrays["step0.critic_loss"] = np.asarray(np.nan)

    assert check(altered(tmp_path, "corl_td3bc.npz", change)) == 1


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("corl_td3bc.npz", lambda a: a.update({"step0.td_error": np.ones(3)}), "step0.td_error"),
        ("corl_td3bc.npz", lambda a: a.pop("step1.actor_loss"), "'step1.actor_loss' is missing"),
        ("corl_td3bc.npz", lambda a: a.pop("hp.tau"), "'hp.tau' is missing"),
        ("corl_td3bc.npz", lambda a: a.update({"step1.target_q": a["step1.target_q"][:5]}), "shape (5, 1)"),
        ("corl_td3bc.npz", lambda a: a.update({"init.actor.net.0.weight": np.ones((3, 3))}), "Error"),
        ("corl_iql_gaussian.npz", lambda a: a.update({"step0.td_error": np.ones(3)}), "step0.td_error"),
        ("corl_iql_gaussian.npz", lambda a: a.pop("init.actor.log_std"), "'init.actor.log_std' is missing"),
        ("official_iql_jax.npz", lambda a: a.update({"step4.v": np.ones(())}), "do not count from 0"),
        ("dw_iql_jax.npz", lambda a: a.pop("step1.weights"), "'step1.weights' is missing"),
        ("dw_iql_jax.npz", lambda a: a.update({"hp.entropy": np.ones(())}), "hp.entropy"),
        ("util_03_network_blocks.npz", lambda a: a.update({"attention/in": np.ones(3)}), "attention/in"),
        ("util_03_network_blocks.npz", lambda a: a.update({"net_mlp/scale": np.ones(3)}), "net_mlp/scale"),
        ("corl_cql_mujoco.npz", lambda a: a.update({"hp.bc_steps": np.asarray(5)}), "'bc_steps' is 5"),
        ("corl_cql_mujoco.npz", lambda a: a.update({"step0.cql_q1_dataset": np.ones(())}), "step0.cql_q1_dataset"),
        ("corl_rebrac_mujoco.npz", lambda a: a.update({"hp.actor_ln": np.asarray(True)}), "'actor_ln' is True"),
        ("corl_rebrac_mujoco.npz", lambda a: a.pop("init.critic.params.VmapCritic_0.LayerNorm_1.bias"), "Error"),
        ("traj_weights_edge.npz", lambda a: a.update({"two.DW_0.1": np.ones(10)}), "two.DW_0.1"),
        ("traj_weights_edge.npz", lambda a: a.update({"two.Top_0.5": np.ones(0)}), "it is empty, but top:0.5 keeps"),
        ("traj_weights_d3rlpy_path.npz", lambda a: a.update({"RW_0.1": np.ones(9)}), "9 transitions in the file"),
        ("util_04_adamw.npz", lambda a: a.update({"lion_wd0/p0": np.ones(3)}), "lion_wd0/p0"),
        ("bc_01_reflow_uniform.npz", lambda a: a.update({"sample/steps": np.ones(3)}), "sample/steps"),
        ("bc_01_reflow_uniform.npz", said(mlp_dims=[32, 32]), "'mlp_dims' is [32, 32], but the arrays say"),
        ("bc_01_reflow_uniform.npz", said(temperature=2.0), "temperature"),
        ("bc_01_reflow_uniform.npz", said(kind="gmm BC"), "gmm BC"),
        ("bc_05_shortcut_concat.npz", said(max_denoising_steps=3), "exponents up to 1"),
        ("bc_05_shortcut_concat.npz", said(sample_time_grid="linspace(0,2,K)"), "time grid"),
        ("dppo_06_ddpm_ft1_nan.npz", said(ent_coef=0.1), "entropy_weight must be 0"),
        ("dppo_06_ddpm_ft1_nan.npz", said(ft_denoising_steps=11), "tuned 11"),
        ("reinflow_03_reflow_K1.npz", lambda a: a.update({"loss_out/drift": np.ones(())}), "drift"),
        ("reinflow_03_reflow_K1.npz", said(noise_scheduler_type="cosine"), "cosine"),
        ("reinflow_03_reflow_K1.npz", said(act_max=2.0), "'act_max' is 2.0"),
        ("reinflow_03_reflow_K1.npz", said(kind="meanflow"), "meanflow"),
        ("util_01_gae_reward_scaling.npz", said(epsilon=1e-6), "'epsilon' is 1e-06"),
        ("util_02_schedules.npz", lambda a: a.update({"lr/new": np.ones(3)}), "lr/new"),
    ],
)
def test_what_cannot_be_checked_is_refused(tmp_path, capsys, name, change, message):
    assert check(altered(tmp_path, name, change)) == 2
    assert message in capsys.readouterr().out


def test_unknown_kinds_and_damaged_files(tmp_path, capsys):
    (tmp_path / "mystery_01.npz").write_bytes(FILES[0].read_bytes())
    (tmp_path / "corl_td3bc_cut.npz").write_bytes(FILES[0].read_bytes()[:2000])
    (tmp_path / "util_04_text.npz").write_text("not an archive")
    np.savez(tmp_path / "util_04_empty.npz")
    np.savez(tmp_path / "util_04_objects.npz", x=np.array([{}], object))
    for name, message in (
        ("mystery_01", "unknown kind"),
        ("corl_td3bc_cut", "cannot be read"),
        ("util_04_text", "cannot be read"),
        ("util_04_empty", "nothing to check"),
        ("util_04_objects", "cannot be read"),
        ("util_04_absent", "cannot be read"),
    ):
        assert check(tmp_path / f"{name}.npz") == 2
        assert message in capsys.readouterr().out


def test_exit_code_of_several_files(tmp_path):
    good = str(HERE / "util_04_adamw.npz")
    missed = altered(tmp_path, "util_04_adamw.npz", lambda a: a.update({"adamw_wd0/p0": a["adamw_wd0/p0"] + 1}))
    assert main([good, str(missed)]) == 1
    assert main([str(missed), "unknown.npz", good]) == 2
    assert main([]) == 2


def test_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "tests.golden", str(HERE / "util_04_adamw.npz")],
        cwd=HERE.parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "adamw_wd1e-2/params" in done.stdout


def test_compare():
    row = compare("x", [1.0, 2.002], [1.0, 2.0], 1e-3, 1e-4)
    assert row.ok
    assert row.error == pytest.approx(0.002)
    assert row.bound == pytest.approx(0.0021)
    assert not compare("x", [1.0, np.nan], [1.0, 2.0], 1e-3, 0).ok
    assert not compare("x", [1.0, 2.0], [1.0, np.inf], 1e-3, 0).ok
    with pytest.raises(Uncheckable, match="shape"):
        compare("x", np.ones((2, 1)), np.ones(3), 1, 1)
