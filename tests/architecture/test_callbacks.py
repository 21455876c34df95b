"""Layers replaced in mid-fit: resume, optimizer state, stages, files, the gate, and what is refused."""

import copy

import lightning as L
import pytest
import torch
from support import Look, User, every_epoch, fit, loader, same
from torch import nn

import lightning_compress as lc
from lightning_compress.architecture import Choice, merge_
from lightning_compress.plan import Record

CALLBACKS = {
    "budget": lambda: lc.LowRank(0.5, start=1, stages=2),
    "ranks": lambda: lc.LowRank(ranks={"network.branch": (2, 3), "network.head": 4}, start=0.3, data_aware=False),
    "separable": lambda: lc.DepthwiseSeparable(start=1),
    "gated": lambda: lc.LowRank(0.3, stages=2, recover=lc.Recovery("val_acc", tolerance=0.0, patience=1)),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_resumed_fits_equal_the_uninterrupted_fit(tmp_path, name):
    """Stopped in mid-epoch: before, between and after the stages."""
    L.seed_everything(1)
    checkpoint = every_epoch(tmp_path, every_n_train_steps=1)
    checkpoint.filename = "{step}"
    factoring = CALLBACKS[name]()
    whole = fit(User("conv"), factoring, checkpoint, max_epochs=4)
    assert factoring.reached == 1.0 or name == "gated"
    for step in (7, 14, 26):
        L.seed_everything(2)
        resumed = fit(User("conv"), CALLBACKS[name](), max_epochs=4, ckpt_path=tmp_path / f"step={step}.ckpt")
        assert same(whole.lightning_module.state_dict(), resumed.lightning_module.state_dict())
        assert lc.Plan.of(whole.lightning_module) == lc.Plan.of(resumed.lightning_module)
        assert same(whole.optimizers[0].state_dict(), resumed.optimizers[0].state_dict())


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_layers_left_alone_keep_their_optimizer_state_and_new_ones_are_trained(optimizer):
    state = {}

    def held(trainer, module):
        kept = trainer.optimizers[0].state
        return {n: copy.deepcopy(kept[p]) for n, p in module.named_parameters() if p in kept}

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 10 and not state:
                state["before"] = held(trainer, module)

    class After(lc.LowRank):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            super().on_train_batch_start(trainer, module, batch, batch_idx)
            if trainer.global_step == 10:
                state["after"] = held(trainer, module)
                state["weights"] = {n: p.detach().clone() for n, p in module.named_parameters()}

    module = User("conv", optimizer)
    factoring = After(ranks={"network.branch": 3}, start=1)
    runner = fit(module, Watch(), factoring, max_epochs=2)
    untouched = [name for name in state["before"] if not name.startswith("network.branch")]
    assert all(same(state["before"][name], state["after"][name]) for name in untouched)
    assert not any(name.startswith("network.branch") for name in state["after"])
    assert all(not torch.equal(state["weights"][n], p) for n, p in module.named_parameters())
    assert sum(len(g["params"]) for g in runner.optimizers[0].param_groups) == len(list(module.parameters()))


def test_parameters_of_new_layers_go_to_the_groups_of_their_kind(tmp_path):
    class Grouped(User):
        def configure_optimizers(self):
            heavy = [p for p in self.parameters() if p.dim() > 1]
            light = [p for p in self.parameters() if p.dim() == 1]
            return torch.optim.AdamW([{"params": heavy}, {"params": light, "weight_decay": 0.0}], lr=3e-3)

    def build():
        return lc.LowRank(ranks={"network.branch": 3, "network.head": 4}, start=1)

    L.seed_everything(0)
    whole = fit(Grouped("conv"), build(), every_epoch(tmp_path), max_epochs=3)
    heavy, light = (group["params"] for group in whole.optimizers[0].param_groups)
    assert {p.dim() > 1 for p in heavy} == {True}
    assert {p.dim() for p in light} == {1}
    resumed = fit(Grouped("conv"), build(), max_epochs=3, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert same(whole.lightning_module.state_dict(), resumed.lightning_module.state_dict())


@pytest.mark.parametrize("name", ["budget", "separable"])
def test_files_and_checkpoints_bring_the_converted_network_back(tmp_path, name):
    runner = fit(User("conv"), CALLBACKS[name](), every_epoch(tmp_path), max_epochs=2)
    module = runner.lightning_module
    lc.save_compressed(module, tmp_path / "model.lcz")
    assert same(lc.load_compressed(tmp_path / "model.lcz", into=User("conv")).state_dict(), module.state_dict())
    again = lc.load_from_checkpoint(User, tmp_path / "epoch=1.ckpt")
    assert same(again.state_dict(), module.state_dict())


def test_branches_travel_in_files_too(tmp_path):
    network = nn.Sequential(nn.Conv2d(8, 64, 3), nn.ReLU())
    lc.architecture.separable_(network, 2, order="depthwise_first", branches=True)
    lc.save_compressed(network, tmp_path / "model.lcz")
    other = lc.load_compressed(tmp_path / "model.lcz", into=nn.Sequential(nn.Conv2d(8, 64, 3), nn.ReLU()))
    value = torch.randn(2, 8, 6, 6)
    assert torch.equal(other(value), network(value))


def test_stages_replace_some_layers_each_and_merging_gives_dense_layers_back():
    seen = []
    factoring = lc.LowRank(ranks={"network.branch": 3, "network.head": 4}, stages=2)
    runner = fit(User("conv"), factoring, Look(lambda *_: seen.append(factoring.reached), step=5), max_epochs=3)
    assert seen == [0.5]
    module = runner.lightning_module.eval()
    value = torch.randn(3, 64)
    with torch.no_grad():
        expected = module(value)
        assert merge_(module) == ["network.branch", "network.head"]
        assert torch.allclose(module(value), expected, atol=1e-5)
    assert type(module.network.head) is nn.Linear


def test_a_gate_takes_back_what_does_not_recover():
    gate = lc.Recovery("val_acc", tolerance=0.0, patience=1)
    module = User("conv")
    ruin = lc.LowRank(ranks={"network.head": 1, "network.stem": 1}, start=2, recover=gate)
    fit(module, ruin, max_epochs=6)
    assert type(module.network.head) is nn.Linear
    assert ruin.reached == 0
    assert any(entry.kind == "rollback" for entry in Record.of(module).journal)


def test_frozen_layers_stay_frozen():
    module = User("conv")
    module.network.branch.requires_grad_(False)
    fit(module, lc.LowRank(ranks={"network.branch": 3}), max_epochs=1)
    assert not any(p.requires_grad for p in module.network.branch.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of"),
        ({"budget": 0.5, "speedup": 2.0}, "one of"),
        ({"budget": 1.5}, "0, 1"),
        ({"budget": 0.5, "of": "flops"}, "Known"),
        ({"budget": 0.5, "methods": ("chanel",)}, "Did you mean 'channel'"),
        ({"ranks": "vbfm"}, "Did you mean 'vbmf'"),
        ({"ranks": {"a": 0}}, "whole numbers"),
        ({"speedup": 0.5}, "above 1"),
        ({"budget": 0.5, "exclude": "fc"}, "exclude"),
        ({"budget": 0.5, "stages": 0}, "stages"),
        ({"budget": 0.5, "data": iter([])}, "anew"),
        ({"budget": 0.5, "data": torch.zeros(3, 4)}, "one batch"),
        ({"budget": 0.5, "data": 5}, "batches"),
        ({"budget": 0.5, "methods": ()}, "nothing to choose"),
        ({"speedup": float("inf")}, "above 1"),
        ({"speedup": "2"}, "above 1"),
        ({"speedup": 2.0, "batch_size": "one"}, "at least one"),
        ({"ranks": {}}, "names no layer"),
        ({"ranks": {"a": None}}, "whole numbers"),
        ({"ranks": {"a": Choice("chanel", (3,))}}, "Did you mean 'channel'"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(lc.CompressionError, match=message):
        lc.LowRank(**arguments)


def test_a_budget_that_cannot_be_reached_is_refused_and_nothing_changes():
    module = User("conv")
    with pytest.raises(lc.CompressionError, match="can reach"):
        fit(module, lc.LowRank(0.001), max_epochs=1)
    assert len(lc.Plan.of(module)) == 0


def test_data_of_the_user_are_used():
    factoring = lc.LowRank(0.5, of="macs", data=loader(0, 80, shuffle=False))
    fit(User("conv"), factoring, max_epochs=1)
    assert factoring.conversions[0].error is not None
