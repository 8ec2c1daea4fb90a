"""What the training benchmark divides by."""

from algos import td3_bc
from benchmarks.updates import flops_per_update
from core.types import EnvSpec


def test_flops_of_an_update_by_hand():
    """One hidden unit layer: count the products of a 1-1-1 actor and 2-1-1 critics on paper."""
    cfg = td3_bc.Config(hidden=(1,), batch_size=1, actor_period=2)
    # forward: actor 2 products, critic 3; target: 2 + 2 * 3
    # critics: 2 * (forward 3 + weights 3 + inputs of layer two 1)
    # actor, every other time: forward 2 + weights 2 + inputs of layer two 1 + Q_1 forward 3 + back to the action 1 + 1
    assert flops_per_update(cfg, EnvSpec("tiny", (1,), 1)) == 2 * (8 + 14 + (5 + 5) / 2)
