"""Neurons taken out in real fits: as many as asked, for real, and the network trains on."""

import copy
import functools

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support import OPTIMIZERS, User, digits, every_epoch, fit, loader, same
from torch import nn

import lightning_compress as lc
from lightning_compress.errors import CompressionError
from lightning_compress.pruning import gathering, latency_target, needs
from lightning_compress.pruning.criteria.apoz import apoz
from lightning_compress.pruning.evidence import needs_of
from lightning_compress.pruning.neurons import COUNTS
from lightning_compress.registry import names, resolve
from lightning_compress.surgery import mask_removed_
from lightning_compress.training import Schedule

PACKAGE = "lightning_compress.pruning.criteria"
CRITERIA = [name for name in names(PACKAGE) if not needs_of(resolve(name, PACKAGE)) & {"moments", "scale"}]


@pytest.fixture
def every_batch(monkeypatch):
    """Activations of all training batches are looked at, not only of some."""
    monkeypatch.setattr(gathering, "STRIDE", 1)


def counted(module, of):
    if of == "params":
        return sum(parameter.numel() for parameter in module.parameters())
    if of == "macs":
        return lc.measure(module, digits()[0][:8]).macs
    network = module.network
    layers = [network[0], network[4]] if isinstance(network, nn.Sequential) else [network.stem]
    return sum(layer.weight.shape[0] for layer in layers)


class Proven(lc.NeuronPruning):
    """Checks at every cut that the smaller network computes what the masked one does."""

    cuts = 0

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, compensate=False, **options)

    def cut(self, target):
        module = self.session.module
        masked, before = copy.deepcopy(module), len(lc.Plan.of(module))
        reached = super().cut(target)
        if len(lc.Plan.of(module)) > before:
            mask_removed_(masked, lc.Plan.of(module).edits[-1])
            flags = [part.training for part in module.modules()]
            with torch.no_grad():
                expected, found = (one.eval()(digits()[0][:50]) for one in (masked, module))
            for part, flag in zip(module.modules(), flags, strict=True):
                part.training = flag
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            self.cuts += 1
            self.after = [parameter.detach().clone() for parameter in module.parameters()]
        return reached


class Live(Callback):
    """At the end the module's parameters, and no others, are in the optimizer; all have moved since the last cut."""

    def __init__(self, pruning):
        self.pruning = pruning

    def on_train_end(self, trainer, pl_module):
        held = [p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in held} == {id(p) for p in pl_module.parameters()}
        assert len(held) == len(list(pl_module.parameters()))
        for optimizer in trainer.optimizers:
            assert set(optimizer.state) <= set(held)
            for parameter, state in optimizer.state.items():
                assert all(t.shape == parameter.shape for t in state.values() if t is not None and t.dim() > 0)
        assert all(not torch.equal(a, b) for a, b in zip(self.pruning.after, pl_module.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_neurons_go_for_real_and_the_network_trains_on(network, optimizer):
    L.seed_everything(1)
    module, pruning = User(network, optimizer=optimizer), Proven(0.5)
    before = counted(module, "channels")
    fit(module, pruning, Live(pruning), max_epochs=5)
    assert pruning.cuts > 2
    assert counted(module, "channels") == before // 2
    assert pruning.reached == 0.5
    assert pruning.on_target
    assert module(digits()[0][:3]).shape == (3, 10)
    assert list(module.state_dict()) == list(User(network).state_dict())
    fresh = User(network)
    lc.Plan.of(module).apply_to(fresh)
    fresh.load_state_dict(module.state_dict())


@pytest.mark.parametrize("of", COUNTS)
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_what_is_reached_is_what_is_gone(network, of):
    module, pruning = User(network), lc.NeuronPruning(0.4, of=of)
    before = counted(module, of)
    fit(module, pruning, max_epochs=4)
    assert pruning.reached == pytest.approx(1 - counted(module, of) / before, abs=1e-12)
    assert pruning.reached == pytest.approx(0.4, abs=0.07 if network == "conv" else 0.02)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_reaches_the_amount(criterion):
    module, pruning = User(), Proven(0.5, criterion=criterion)
    fit(module, pruning, max_epochs=3)
    assert pruning.reached == 0.5
    assert pruning.cuts > 2


def test_batch_norm_scale_takes_the_channels_of_small_scale_and_refuses_layers_without():
    module = User()
    with torch.no_grad():
        module.network[1].weight[::2] = 1e-3
    kept = module.network[0].weight[1::2].detach().clone()
    options = {"exclude": ["network.4"], "schedule": "one_shot", "max_step": 0.5}
    fit(module, lc.NeuronPruning(0.5, criterion="batch_norm_scale", **options), max_epochs=1)
    assert module.network[0].weight.shape == kept.shape
    assert (module.network[0].weight - kept).abs().mean() < 0.1
    with pytest.raises(CompressionError, match=r"'network.4' has no BatchNorm behind it.*exclude=\('network.4',\)"):
        fit(User(), lc.NeuronPruning(0.5, criterion="batch_norm_scale"), max_epochs=2)


def test_least_channels_are_left():
    module = User()
    fit(module, lc.NeuronPruning(0.6, min_channels=9, criterion="random"), max_epochs=4)
    widths = module.network[0].out_features, module.network[4].out_features
    assert min(widths) >= 9
    assert sum(widths) == 19


def test_an_amount_out_of_reach_is_refused_before_training():
    for arguments, says in [
        ({"amount": 0.9, "min_channels": 8}, "with 8 left in each layer at most 66.7%"),
        ({"amount": 0.5, "exclude": ["network.0"], "of": "params"}, "'network.4', has 16"),
        ({"amount": 0.5, "exclude": ["network"]}, "no neurons that can be taken out.*network.0: it is excluded"),
        ({"amount": 0.5, "exclude": ["netwrk"]}, "no module is called 'netwrk'.*Did you mean 'network'"),
    ]:
        module = User()
        before = copy.deepcopy(module.state_dict())
        with pytest.raises(CompressionError, match=says):
            fit(module, lc.NeuronPruning(**arguments), max_epochs=2)
        assert same(dict(module.state_dict()), dict(before))


class Narrow(User):
    def __init__(self, *widths):
        super().__init__()
        layers = [nn.Sequential(nn.Linear(i, o), nn.ReLU()) for i, o in zip((64, *widths), widths, strict=False)]
        self.network = nn.Sequential(*layers, nn.Linear(widths[-1], 10))

    @property
    def widths(self):
        return [layer[0].out_features for layer in self.network[:-1]]


@pytest.mark.parametrize(("widths", "criterion"), [((4,), "magnitude"), ((8, 4), "taylor")])
def test_layers_of_which_one_neuron_is_left_before_the_last_cut_count_and_resume(widths, criterion, tmp_path):
    amount = 1 - len(widths) / sum(widths)
    module, pruning = Narrow(*widths), lc.NeuronPruning(amount, criterion=criterion)
    checkpoint = every_epoch(tmp_path, every_n_train_steps=8)
    checkpoint.filename = "{step}"
    fit(module, pruning, checkpoint, max_epochs=3, limit_train_batches=10)
    assert module.widths == [1] * len(widths)
    assert pruning.reached == pytest.approx(amount)
    resumed = Narrow(*widths)
    again = lc.NeuronPruning(amount, criterion=criterion)
    fit(resumed, again, max_epochs=3, limit_train_batches=10, ckpt_path=tmp_path / "step=24.ckpt")
    assert same(dict(module.state_dict()), dict(resumed.state_dict()))


def test_neurons_of_a_layer_whose_cut_is_refused_are_not_counted_as_gone():
    class Refusing(lc.NeuronPruning):
        def on_train_start(self, trainer, pl_module):
            super().on_train_start(trainer, pl_module)
            self.session.prove = self.refuse

        def refuse(self, edit, norms=()):
            if any((part.tensor, part.dim) == ("network.0.weight", 0) for part in edit.slices):
                raise CompressionError("not exact")

    module, pruning = User(), Refusing(0.3)
    fit(module, pruning, max_epochs=4)
    left = module.network[0].out_features, module.network[4].out_features
    assert left == (32, 2)
    assert pruning.reached == pytest.approx(1 - sum(left) / 48)


def test_excluded_layers_and_outputs_stay():
    module = User()
    fit(module, lc.NeuronPruning(0.5, exclude=["network.0"]), max_epochs=4)
    assert (module.network[0].out_features, module.network[4].out_features, module.network[6].out_features) == (
        32,
        8,
        10,
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"of": "channel"}, r"of='channel'.*Did you mean 'channels'"),
        ({"criterion": "apozz"}, "No 'apozz' among the criteria. Did you mean 'apoz'"),
        ({"schedule": "iterativ"}, "Did you mean 'iterative'"),
        ({"amount": 1.0}, "not a share"),
        ({"amount": -0.5}, "not a share"),
        ({"min_channels": 0}, "keeps at least one"),
        ({"exclude": "network.0"}, "is one name"),
        ({"data": iter([])}, "every cut reads it anew"),
        ({"of": None}, "of=None"),
        ({"min_channels": 2.5}, "min_channels=2.5"),
        ({"balance": 1.5}, r"balance=1.5\): from 0"),
        ({"round_to": True}, "round_to=True"),
        ({"amount": None, "speedup": "2"}, "speedup=2"),
        ({"amount": None, "speedup": 2, "batch_size": "8"}, "one sample is timed"),
        ({"runtime": "onnx"}, "Did you mean 'onnxruntime'"),
        ({"optimizer": "rest"}, "Did you mean 'reset'"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, says):
    with pytest.raises(CompressionError, match=says):
        lc.NeuronPruning(**{"amount": 0.5, **arguments})


def test_amount_zero_takes_nothing():
    module = User()
    fit(module, lc.NeuronPruning(0.0), max_epochs=1)
    assert module.network[0].out_features == 32
    assert len(lc.Plan.of(module)) == 0


# -- statistics --------------------------------------------------------------------------------------------------------


class Zeros(Callback):
    """Counts zeros at the inputs of consumers by itself: in training passes only, since the last cut."""

    def __init__(self, *layers):
        self.layers, self.total = layers, {}

    def on_fit_start(self, trainer, pl_module):
        for name in self.layers:
            pl_module.get_submodule(name).register_forward_pre_hook(functools.partial(self.count, name))

    def count(self, name, module, args):
        if module.training and torch.is_grad_enabled():
            zeros, seen = self.total.get(name, (0, 0))
            dims = [dim for dim in range(args[0].dim()) if dim != 1]
            self.total[name] = zeros + (args[0] == 0).sum(dims), seen + args[0][:, 0].numel()

    def share(self, name):
        zeros, seen = self.total[name]
        return zeros / seen


def recorded(seen):
    """Apoz that writes down, at its first cut, what it was given."""

    @needs("zero_share")
    def criterion(evidence):
        seen.setdefault(evidence.name, evidence.zero_share.clone())
        return apoz(evidence)

    return criterion


class Stop(Exception):
    pass


class Once(lc.NeuronPruning):
    """Ends the fit with its first cut."""

    def cut(self, target):
        if super().cut(target) is not None:
            raise Stop


def statistics_of_two_epochs(module, *layers):
    """What the criterion gets after two epochs with validations between, and what was to be counted."""
    seen, zeros = {}, Zeros(*layers)
    schedule = Schedule("linear", start=2, end=3, rounds=2)
    with pytest.raises(Stop):
        fit(module, Once(0.34, criterion=recorded(seen), schedule=schedule, max_step=0.5), zeros, max_epochs=5)
    return seen, zeros


def without_dropout():
    """A network in which the zeros at a layer's input are all the neurons' own."""
    module = User()
    module.network[3].p = 0.0
    return module


def test_zeros_are_counted_at_the_consumers_input_in_training_passes_alone(every_batch):
    seen, zeros = statistics_of_two_epochs(without_dropout(), "network.4", "network.6")
    torch.testing.assert_close(seen["network.0"], zeros.share("network.4").double())
    torch.testing.assert_close(seen["network.4"], zeros.share("network.6").double())


def test_zeros_of_a_channel_before_a_flatten_are_the_mean_over_its_positions(every_batch):
    class Net(User):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10))

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def forward(self, images):
            return self.network(images.view(-1, 1, 8, 8))

    module = Net()
    seen, zeros = statistics_of_two_epochs(module, "network.3")
    assert (module.network[0].out_channels, module.network[3].in_features) == (5, 5 * 36)
    torch.testing.assert_close(seen["network.0"], zeros.share("network.3").double().view(6, 36).mean(1))


def test_statistics_begin_anew_with_each_cut(every_batch):
    class Twice(lc.NeuronPruning):
        cuts = 0

        def cut(self, target):
            seen.clear()
            reached = super().cut(target)
            self.cuts += 1
            if self.cuts == 2:
                raise Stop
            zeros.total.clear()
            return reached

    seen, zeros = {}, Zeros("network.4", "network.6")
    schedule = Schedule("linear", start=1, end=3, rounds=2)
    with pytest.raises(Stop):
        pruning = Twice(0.34, criterion=recorded(seen), schedule=schedule, max_step=0.5)
        fit(without_dropout(), pruning, zeros, max_epochs=5)
    torch.testing.assert_close(seen["network.0"], zeros.share("network.4").double())


def test_cuts_that_come_faster_than_epochs_still_reach_the_amount():
    pruning = lc.NeuronPruning(0.7, criterion="apoz")
    fit(User(), pruning, max_epochs=2)
    assert pruning.reached == pytest.approx(0.7, abs=0.02)
    assert pruning.on_target


def test_given_data_are_read_in_evaluation_at_each_cut():
    images = [digits()[0][k : k + 50] for k in (0, 50)]
    seen, expected, flags = {}, {}, []

    class Look(lc.NeuronPruning):
        def cut(self, target):
            if not expected:
                twin = copy.deepcopy(self.session.module).eval()
                with torch.no_grad():
                    hidden = torch.cat([twin.network[:4](batch) for batch in images])
                expected["network.0"] = (hidden == 0).double().mean(0)
            flags.append([part.training for part in self.session.module.modules()])
            state = torch.get_rng_state()
            reached = super().cut(target)
            flags.append([part.training for part in self.session.module.modules()])
            assert torch.equal(torch.get_rng_state(), state)
            return reached

    module = User()
    pruning = Look(0.5, criterion=recorded(seen), data=[(batch, None) for batch in images])
    fit(module, pruning, max_epochs=4)
    torch.testing.assert_close(seen["network.0"], expected["network.0"])
    assert pruning.reached == 0.5
    assert flags[0] == flags[1]


def test_given_data_work_without_a_forward_of_the_module_itself():
    class NoForward(User):
        forward = L.LightningModule.forward

        def validation_step(self, batch, batch_idx):
            self.log("val_acc", (self.network(batch[0]).argmax(1) == batch[1]).float().mean())

    pruning = lc.NeuronPruning(0.5, criterion="apoz", data=loader())
    fit(NoForward(), pruning, max_epochs=4)
    assert pruning.reached == 0.5


class Smooth(User):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 16), nn.GELU(), nn.Linear(16, 10))


@pytest.mark.parametrize("data", [None, "loader"])
def test_apoz_is_refused_where_zeros_never_occur(data):
    module = Smooth()
    pruning = lc.NeuronPruning(0.5, criterion="apoz", data=loader() if data else None)
    with pytest.raises(CompressionError, match=r"'network.0': none of its neurons ever gives an exact zero.*GELU"):
        fit(module, pruning, max_epochs=4)
    assert module.network[0].out_features == 16
    assert len(lc.Plan.of(module)) == 0


def test_the_sanity_check_leaves_no_statistics():
    seen = {}
    fit(User(), lc.NeuronPruning(0.2, criterion=recorded(seen)), max_epochs=2, num_sanity_val_steps=2)
    assert set(seen) == {"network.0", "network.4"}


# -- together ----------------------------------------------------------------------------------------------------------


def test_two_of_them_in_one_trainer():
    module = User()
    one = Proven(0.5, exclude=["network.4"], name="first")
    two = lc.NeuronPruning(0.25, exclude=["network.0"], name="second", criterion="apoz")
    runner = fit(module, one, two, max_epochs=5)
    assert (module.network[0].out_features, module.network[4].out_features) == (16, 12)
    assert (one.reached, two.reached) == (0.5, 0.25)
    assert {"compress/channels_removed_first", "compress/channels_removed_second"} <= set(runner.callback_metrics)
    assert one.cuts > 2


def test_the_random_states_of_the_fit_are_not_drawn_from():
    """Behind the only dropout, a random criterion leaves batches and dropout as they were without it."""
    L.seed_everything(1)
    plain, module = User(), User()
    module.load_state_dict(plain.state_dict())
    L.seed_everything(2)
    fit(plain, max_epochs=2)
    after = torch.get_rng_state()
    L.seed_everything(2)
    fit(module, lc.NeuronPruning(0.4, criterion="random", exclude=["network.0"]), max_epochs=2)
    assert len(lc.Plan.of(module)) > 0
    assert torch.equal(torch.get_rng_state(), after)


def test_nothing_of_ours_stays_after_the_fit():
    module = User()
    fit(module, lc.NeuronPruning(0.5, criterion="apoz"), max_epochs=3)
    assert lc.plan.Record.of(module).followers == []
    assert not any(part._forward_pre_hooks for part in module.modules())


@pytest.mark.parametrize("optimizer", ["carry", "reset"])
def test_what_the_optimizer_keeps_is_carried_or_starts_anew(optimizer):
    class Looking(lc.NeuronPruning):
        def cut(self, target):
            before, reached = self.session.trainer.global_step, super().cut(target)
            kept = self.session.trainer.optimizers[0].state.get(self.session.module.network[0].weight)
            seen.append((before, None if kept is None else int(kept["step"])))
            return reached

    seen, module = [], User()
    schedule = Schedule("linear", start=1, end=2, rounds=2)
    fit(module, Looking(0.5, optimizer=optimizer, schedule=schedule, max_step=0.5), max_epochs=3)
    state = module.trainer.optimizers[0].state[module.network[0].weight]
    assert state["exp_avg"].shape == module.network[0].weight.shape
    assert seen == [(10, 10), (15, 15)] if optimizer == "carry" else [(10, None), (15, None)]
    assert int(state["step"]) == (30 if optimizer == "carry" else 15)


def test_an_optimizer_whose_state_cannot_be_cut_starts_anew():
    class Factored(User):
        def configure_optimizers(self):
            return torch.optim.Adafactor(self.parameters(), lr=0.01)

    options = {"schedule": Schedule("linear", start=1, end=2, rounds=2), "max_step": 0.5}
    module, other = Factored(), Factored()
    fit(module, lc.NeuronPruning(0.5, optimizer="reset", **options), max_epochs=3, limit_train_batches=4)
    assert len(lc.Plan.of(module)) == 2
    with pytest.raises(CompressionError, match=r"Adafactor: its state 'row_var'.*optimizer='reset'"):
        fit(other, lc.NeuronPruning(0.5, **options), max_epochs=3, limit_train_batches=4)
    assert len(lc.Plan.of(other)) == 0


def test_a_runtime_that_is_named_aligns_the_widths_and_is_measured_once(monkeypatch):
    calls = []
    monkeypatch.setattr(latency_target, "learn_alignment", lambda *_, share: calls.append(share) or 8)
    monkeypatch.setattr(latency_target, "_LEARNED", {})
    for _ in range(2):
        module = User()
        fit(module, lc.NeuronPruning(0.5, of="params", runtime="eager"), max_epochs=4, limit_train_batches=5)
        assert {module.network[0].out_features % 8, module.network[4].out_features % 8} == {0}
    assert calls == [pytest.approx(1 - 0.5**0.5)]
    plain = User()
    fit(plain, lc.NeuronPruning(0.5, of="params"), max_epochs=4, limit_train_batches=5)
    assert len(calls) == 1


def test_callables_do_in_the_place_of_names():
    module = User()

    @needs("zero_share")
    def power(evidence, exponent):
        return (1 - evidence.zero_share) ** exponent

    pruning = lc.NeuronPruning(0.5, criterion=functools.partial(power, exponent=2), schedule=lambda p, final: final * p)
    fit(module, pruning, max_epochs=5)
    assert pruning.reached == 0.5
