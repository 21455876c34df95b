"""Two gloo processes stay bit-equal through cuts, whatever each of them would have drawn."""

from pathlib import Path

import lightning as L
import pytest
import torch
from support import User, on_two_processes, same

import lightning_compress as lc


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    script = Path(__file__).parent / "two_processes.py"
    return on_two_processes(script, tmp_path_factory.mktemp("two-processes"))


@pytest.mark.parametrize("case", ["weights", "neurons", "apoz", "both-gated"])
def test_parameters_masks_and_plans_are_equal_on_both_processes(results, case):
    first, second = results[case]
    assert not torch.equal(first["random"], second["random"])
    for key in ("state_dict", "plan", "reached", "masks"):
        assert same(first[key], second[key]), key
    assert all(share > 0.1 for share in first["reached"])
    assert all(first["moved"]), "a shrunken network trains on"
    assert all(second["moved"])


@pytest.mark.parametrize("case", ["weights", "neurons"])
def test_resume_on_two_processes_is_exact(results, case):
    for one, two in zip(results[case], results[f"{case}-resumed"], strict=True):
        assert same(one["state_dict"], two["state_dict"])
        assert same(one["plan"], two["plan"])


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_spawn"])
def test_launchers_that_bring_weights_back_to_a_process_of_the_former_shape_are_refused(strategy):
    """Their main process would load the shrunken weights into a network that has not shrunk."""
    runner = L.Trainer(accelerator="cpu", devices=1, strategy=strategy, logger=False, enable_checkpointing=False)
    with pytest.raises(lc.CompressionError, match="strategy='ddp'"):
        lc.NeuronPruning(0.5).refuse_conflicts(runner, User())
    lc.WeightPruning(0.5).refuse_conflicts(runner, User())
