"""Optimizer state through an edit, and parameters of our own beside the user's."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support import OPTIMIZERS, User, fit, mlp, same
from torch import nn

import lightning_compress as lc
from lightning_compress.plan import Attribute, KeepIndices, Record, ReplaceModule, Slice
from lightning_compress.training import AuxiliaryOptimizer, OptimizerBinding

KEPT = torch.tensor([0, 3, 4])


def network_and_edit():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    slices = (Slice("0.weight", 0, 6, KEPT), Slice("0.bias", 0, 6, KEPT), Slice("2.weight", 1, 6, KEPT))
    return net, KeepIndices(slices, (Attribute("0", "out_features", 6, 3), Attribute("2", "in_features", 6, 3)), "half")


def step(net, optimizer, inputs):
    optimizer.zero_grad()
    net(inputs).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_cut_network_trains_on_as_if_the_neurons_had_never_been(name):
    """Neurons whose weights and gradients are zero change nothing: cutting them must not either, moments and all."""
    inputs = torch.randn(16, 4)
    runs = []
    for cut in (False, True):
        net, edit = network_and_edit()
        with torch.no_grad():
            gone = [i for i in range(6) if i not in KEPT.tolist()]
            net[0].weight[gone], net[0].bias[gone], net[2].weight[:, gone] = 0.0, 0.0, 0.0
        optimizer = OPTIMIZERS[name](net.parameters())
        record = Record.of(net)
        record.followers.append(OptimizerBinding(net, [optimizer]))
        for _ in range(3):
            step(net, optimizer, inputs)
        if cut:
            record.apply(edit)
        for _ in range(3):
            step(net, optimizer, inputs)
        runs.append(net(inputs).detach())
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-4, atol=1e-6)


def test_state_groups_and_schedule_are_kept():
    net, edit = network_and_edit()
    groups = [
        {"params": [net[2].weight, net[0].bias], "lr": 0.1, "weight_decay": 0.5},
        {"params": [net[0].weight, net[2].bias]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    for _ in range(3):
        step(net, optimizer, torch.randn(8, 4))
        scheduler.step()
    before = {name: optimizer.state[parameter]["exp_avg"].clone() for name, parameter in net.named_parameters()}
    rates = [group["lr"] for group in optimizer.param_groups]
    record = Record.of(net)
    record.followers.append(OptimizerBinding(net, [optimizer]))
    record.apply(edit)
    assert [group["lr"] for group in optimizer.param_groups] == rates
    assert [[tuple(p.shape) for p in group["params"]] for group in optimizer.param_groups] == [
        [(2, 3), (3,)],
        [(3, 4), (2,)],
    ]
    assert optimizer.param_groups[0]["params"][0] is net[2].weight
    assert torch.equal(optimizer.state[net[2].weight]["exp_avg"], before["2.weight"][:, KEPT])
    assert torch.equal(optimizer.state[net[0].weight]["exp_avg"], before["0.weight"][KEPT])
    assert optimizer.state[net[0].weight]["step"] == 3
    assert len(optimizer.state) == 4
    record.undo()
    assert optimizer.state[net[0].weight]["exp_avg"].shape == (6, 4)
    assert torch.equal(optimizer.state[net[0].weight]["exp_avg"][KEPT], before["0.weight"][KEPT])
    for _ in range(7):
        step(net, optimizer, torch.randn(8, 4))
        scheduler.step()


def test_the_order_in_a_group_is_that_of_a_fresh_optimizer_after_a_replacement():
    net, _ = network_and_edit()
    optimizer = torch.optim.Adam(net.parameters())
    step(net, optimizer, torch.randn(8, 4))
    kept = optimizer.state[net[2].weight]["exp_avg"].clone()
    record = Record.of(net)
    record.followers.append(OptimizerBinding(net, [optimizer]))
    linear = {"type": "Linear", "arguments": {"in_features": 4, "out_features": 2, "bias": False}}
    wide = {"type": "Linear", "arguments": {"in_features": 2, "out_features": 6}}
    record.apply(ReplaceModule("0", {"type": "Sequential", "children": [["down", linear], ["up", wide]]}))
    assert list(map(id, optimizer.param_groups[0]["params"])) == list(map(id, net.parameters()))
    assert torch.equal(optimizer.state[net[2].weight]["exp_avg"], kept)
    step(net, optimizer, torch.randn(8, 4))
    record.undo()
    assert list(map(id, optimizer.param_groups[0]["params"])) == list(map(id, net.parameters()))


def test_factored_state_is_refused_and_nothing_is_changed():
    class Factored(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["row"] = torch.zeros(parameter.shape[0], 1)

    net, edit = network_and_edit()
    optimizer = Factored(net.parameters(), lr=0.1)
    step(net, optimizer, torch.randn(8, 4))
    record = Record.of(net)
    masks = lc.pruning.Masks(net)
    masks.set({"0.weight": torch.rand(6, 4) > 0.5})
    record.followers += [masks, OptimizerBinding(net, [optimizer])]
    before, state = list(net.parameters()), masks.to_state()
    with pytest.raises(lc.CompressionError, match="cannot shrink under Factored"):
        record.apply(edit)
    assert net[0].out_features == 6
    assert all(a is b for a, b in zip(before, net.parameters(), strict=True))
    assert all(a is b for a, b in zip(before, optimizer.param_groups[0]["params"], strict=True))
    assert same(masks.to_state(), state)
    assert len(lc.Plan.of(net)) == 0


def test_an_edit_that_a_later_follower_cannot_follow_leaves_the_optimizer_as_it_was():
    class Stubborn:
        def follow(self, edit):
            raise RuntimeError("no")

    net, edit = network_and_edit()
    optimizer = torch.optim.Adam(net.parameters())
    step(net, optimizer, torch.randn(8, 4))
    before, state = list(net.parameters()), {k: dict(v) for k, v in optimizer.state.items()}
    record = Record.of(net)
    record.followers += [OptimizerBinding(net, [optimizer]), Stubborn()]
    with pytest.raises(RuntimeError, match="no"):
        record.apply(edit)
    assert all(a is b for a, b in zip(before, optimizer.param_groups[0]["params"], strict=True))
    assert all(same(state[p], dict(optimizer.state[p])) for p in before)


def test_tied_parameters_stay_one():
    net = nn.ModuleDict({"embed": nn.Linear(5, 4, bias=False), "out": nn.Linear(5, 4, bias=False)})
    net["out"].weight = net["embed"].weight
    optimizer = torch.optim.Adam(net.parameters())
    net["embed"].weight.sum().backward()
    optimizer.step()
    record = Record.of(net)
    record.followers.append(OptimizerBinding(net, [optimizer]))
    record.apply(KeepIndices((Slice("embed.weight", 0, 4, torch.tensor([1, 2])),)))
    assert net["out"].weight is net["embed"].weight is optimizer.param_groups[0]["params"][0]
    assert optimizer.state[net["out"].weight]["exp_avg"].shape == (2, 5)


class OwnScale(Callback):
    """A parameter of our own beside the user's: scales the output of the network."""

    def __init__(self, **options):
        self.scale = nn.Parameter(torch.ones(10))
        self.auxiliary = AuxiliaryOptimizer({"scale": self.scale}, lambda p: torch.optim.SGD(p, lr=0.1), **options)

    def on_fit_start(self, trainer, pl_module):
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.auxiliary.attach(trainer.optimizers, scaler.get_scale if scaler else None)
        pl_module.network.register_forward_hook(lambda module, args, output: output * self.scale)

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.auxiliary.zero_grad()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_auxiliary_optimizer_steps_with_the_users_and_stays_out_of_it(accumulate):
    own = OwnScale()
    runner = fit(User(), own, max_epochs=1, accumulate_grad_batches=accumulate)
    assert not torch.equal(own.scale, torch.ones(10))
    assert all(own.scale is not p for group in runner.optimizers[0].param_groups for p in group["params"])
    before = own.scale.detach().clone()
    state = own.auxiliary.state_dict()
    other = OwnScale()
    other.auxiliary.load_state_dict(state)
    assert torch.equal(other.scale, before)


def test_auxiliary_gradients_are_unscaled_and_clipped():
    scale = nn.Parameter(torch.zeros(2))
    auxiliary = AuxiliaryOptimizer({"s": scale}, lambda p: torch.optim.SGD(p, lr=1.0), clip_norm=1.0)
    user = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    auxiliary.attach([user], lambda: 8.0)
    scale.grad = torch.tensor([24.0, 32.0])
    user.step()
    torch.testing.assert_close(scale.detach(), torch.tensor([-0.6, -0.8]))
    assert scale.grad is None
    auxiliary.detach()
    scale.grad = torch.ones(2)
    user.step()
    torch.testing.assert_close(scale.detach(), torch.tensor([-0.6, -0.8]))


def test_auxiliary_gradients_that_are_not_finite_are_dropped():
    scale = nn.Parameter(torch.zeros(2))
    auxiliary = AuxiliaryOptimizer({"s": scale}, lambda p: torch.optim.SGD(p, lr=1.0))
    scale.grad = torch.tensor([1.0, float("inf")])
    auxiliary.step()
    assert torch.equal(scale, torch.zeros(2))
    assert scale.grad is None


def test_a_stale_optimizer_is_what_this_prevents():
    """The control: without the binding the new weights never move."""
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters())
    Record.of(net).apply(KeepIndices((Slice("4.weight", 0, 16, torch.arange(8)),)))
    held = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert id(net[4].weight) not in held


def test_seeded_fits_are_equal_with_and_without_the_binding_of_replay():
    from lightning_compress.training import Replay

    runs = []
    for callbacks in ((), (Replay(),)):
        L.seed_everything(1)
        runs.append(fit(User(), *callbacks).lightning_module.state_dict())
    assert same(*map(dict, runs))
