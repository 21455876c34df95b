"""Weights pruned in real fits: exactly as many as asked, and every zero stays one."""

import copy
import functools
import itertools

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support import OPTIMIZERS, User, fit, loader, same
from torch import nn

import lightning_compress as lc
from lightning_compress.errors import CompressionError
from lightning_compress.pruning import find_weights
from lightning_compress.pruning.criteria.magnitude import magnitude
from lightning_compress.pruning.evidence import NEURONS_ONLY, needs_of
from lightning_compress.registry import names, resolve
from lightning_compress.training import Schedule

PACKAGE = "lightning_compress.pruning.criteria"
CRITERIA = [name for name in names(PACKAGE) if not needs_of(resolve(name, PACKAGE)) & NEURONS_ONLY]
ALLOCATIONS = names("lightning_compress.pruning.allocations")
BITS = {4: torch.int32, 2: torch.int16}


class Watch(Callback):
    """After every step and in every validation: what is masked is +0.0, bit for bit, and masks only grow."""

    def __init__(self, pruning):
        self.pruning, self.dead, self.steps, self.seen = pruning, {}, 0, set()

    def look(self, module):
        for name, parameter in module.named_parameters():
            keep = self.pruning.masks.keep(name, parameter)
            assert not parameter.detach().view(BITS[parameter.element_size()])[~keep].any(), name
            assert not (self.dead.get(name, torch.zeros_like(keep)) & keep).any(), f"{name} was revived"
            self.dead[name] = ~keep
        self.seen.add(self.pruning.masks.zeros)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.steps += 1
        self.look(pl_module)

    def on_validation_batch_end(self, trainer, pl_module, *_):
        self.look(pl_module)


def pruned(module, pruning, **options):
    """A fit with a Watch; returns the share of masked weights and the number of weights."""
    watch = Watch(pruning)
    fit(module, pruning, watch, **{"max_epochs": 3, **options})
    assert watch.steps > 20
    weights = find_weights(module, *pruning._patterns)
    total = sum(weight.numel() for weight in weights.values())
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    assert zeros == pruning.masks.zeros
    assert pruning.reached == zeros / total
    assert len(watch.seen) > 1
    return zeros, total


@pytest.mark.parametrize(("optimizer", "allocation"), list(zip(OPTIMIZERS, itertools.cycle(ALLOCATIONS))))
def test_final_sparsity_is_exact_and_zeros_stay_under_every_optimizer(optimizer, allocation):
    pruning = lc.WeightPruning(0.8, allocation=allocation)
    zeros, total = pruned(User(optimizer=optimizer), pruning)
    assert zeros == round(0.8 * total)
    assert pruning.on_target


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "precision": "bf16-mixed"},
    ],
    ids=str,
)
@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_zeros_stay_whatever_the_trainer_does(options, optimizer):
    pruning = lc.WeightPruning(0.8)
    zeros, total = pruned(User("conv", optimizer=optimizer), pruning, **options)
    assert zeros == round(0.8 * total)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_ends_exactly(criterion):
    zeros, total = pruned(User(), lc.WeightPruning(0.7, criterion=criterion))
    assert zeros == round(0.7 * total)


@pytest.mark.parametrize("sparsity", [0.013, 1 / 3, 0.5, 0.97])
def test_every_sparsity_is_met_to_the_weight(sparsity):
    pruning = lc.WeightPruning(sparsity, allocation="uniform", schedule=Schedule("linear", rounds=4), max_step=1.0)
    zeros, total = pruned(User(), pruning)
    assert zeros == round(sparsity * total)


def test_sparsity_zero_prunes_nothing():
    L.seed_everything(1)
    plain, module = User(), User()
    module.load_state_dict(plain.state_dict())
    pruning = lc.WeightPruning(0.0)
    L.seed_everything(2)
    fit(module, pruning, max_epochs=1)
    L.seed_everything(2)
    fit(plain, max_epochs=1)
    assert pruning.masks.zeros == 0
    assert pruning.on_target
    assert same(module.state_dict(), plain.state_dict())


def test_two_optimizers_both_leave_the_zeros():
    class Two(User):
        def configure_optimizers(self):
            return [
                torch.optim.Adam(self.network[:4].parameters()),
                torch.optim.SGD(self.network[4:].parameters(), 0.1),
            ]

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()

    module = Two()
    module.automatic_optimization = False
    pruning = lc.WeightPruning(0.6)
    zeros, total = pruned(module, pruning)
    assert zeros == round(0.6 * total)


def test_nan_in_a_masked_entry_is_gone_after_the_step():
    class Poison(Callback):
        poisoned = 0

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            weight = pl_module.network[0].weight
            dead = ~pruning.masks.keep("network.0.weight", weight)
            weight.grad[dead] = float("nan")
            self.poisoned += int(dead.sum())

    pruning, poison = lc.WeightPruning(0.5), Poison()
    module = User(optimizer="sgd")
    fit(module, pruning, poison, max_epochs=2)
    assert poison.poisoned > 1000
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_sparsity_is_of_the_targets_and_the_whole_networks_is_told_too():
    pruning = lc.WeightPruning(0.9, targets=["network.0"])
    module = User()
    runner = fit(module, pruning, max_epochs=3)
    assert int((module.network[0].weight == 0).sum()) == round(0.9 * 64 * 32)
    assert (module.network[4].weight != 0).all()
    total = sum(parameter.numel() for parameter in module.parameters())
    zeros = sum(int((parameter == 0).sum()) for parameter in module.parameters())
    assert float(runner.callback_metrics["compress/network_sparsity"]) == pytest.approx(zeros / total)
    assert float(runner.callback_metrics["compress/sparsity"]) == pytest.approx(0.9, abs=1e-3)


def test_biases_are_pruned_only_on_request_and_excluded_layers_never():
    module = User()
    pruning = lc.WeightPruning(
        0.5, targets=["network", "network.?.bias"], exclude=["network.6"], allocation="uniform", max_step=0.5
    )
    fit(module, pruning, max_epochs=3)
    assert int((module.network[0].bias == 0).sum()) == 16
    assert int((module.network[1].bias == 0).sum()) == 16
    assert (module.network[6].weight != 0).all()
    assert (module.network[6].bias != 0).all()


class Sequence(User):
    """Rows of a digit through attention and an LSTM."""

    def __init__(self):
        super().__init__()
        self.network = nn.ModuleDict(
            {
                "attention": nn.MultiheadAttention(8, 2, batch_first=True),
                "memory": nn.LSTM(8, 12),
                "head": nn.Linear(12, 10),
            }
        )

    def forward(self, images):
        rows = images.view(-1, 8, 8)
        mixed, _ = self.network["attention"](rows, rows, rows)
        _, (last, _) = self.network["memory"](mixed.transpose(0, 1))
        return self.network["head"](last[0])

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


def test_attention_and_recurrent_layers_are_pruned_by_default():
    module, pruning = Sequence(), lc.WeightPruning(0.7, allocation="uniform")
    zeros, total = pruned(module, pruning)
    assert zeros == round(0.7 * total)
    attention, memory = module.network["attention"], module.network["memory"]
    for weight in (attention.in_proj_weight, attention.out_proj.weight, memory.weight_ih_l0, memory.weight_hh_l0):
        assert int((weight == 0).sum()) == pytest.approx(0.7 * weight.numel(), abs=1)
    assert all(flat is one for flat, one in zip(memory._flat_weights, memory.parameters(), strict=True))


def test_tied_weights_are_pruned_once():
    class Tied(User):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
            self.network[2].weight = self.network[0].weight

    module = Tied()
    zeros, total = pruned(module, lc.WeightPruning(0.8))
    assert (zeros, total) == (round(0.8 * (64 * 64 + 640)), 64 * 64 + 640)
    assert module.network[2].weight is module.network[0].weight


def test_a_layer_that_would_be_left_with_nothing_is_refused_before_the_cut():
    class Watching(lc.WeightPruning):
        def cut(self, target):
            self.before = copy.deepcopy(self.session.module.state_dict())
            self.zeros = self.masks.zeros
            return super().cut(target)

    module = User(optimizer="sgd")
    with torch.no_grad():
        module.network[0].weight.mul_(1e-4)
    pruning = Watching(0.8, schedule="one_shot", max_step=0.8)
    with pytest.raises(CompressionError, match=r"'network.0.weight' has 2048 weights.*uniform"):
        fit(module, pruning, max_epochs=4)
    assert same(dict(module.state_dict()), dict(pruning.before))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"criterion": "magnitud"}, "No 'magnitud' among the criteria. Did you mean 'magnitude'"),
        ({"allocation": "globl"}, "No 'globl' among the allocations. Did you mean 'global'"),
        ({"schedule": "cubick"}, "No 'cubick' among the schedules. Did you mean 'cubic'"),
        ({"criterion": "apoz"}, "judges neurons, not single weights: use it with NeuronPruning"),
        ({"sparsity": 1}, r"1 is not a share in \[0, 1\)"),
        ({"sparsity": -0.1}, "is not a share"),
        ({"sparsity": 90}, "0.9 takes nine tenths away"),
        ({"sparsity": float("nan")}, "is not a share"),
        ({"max_step": 0}, r"max_step=0 is not a share in \(0, 1\]"),
        ({"max_step": 1.5}, "max_step"),
        ({"targets": "fc"}, r"targets='fc' is one name; write targets=\('fc',\)"),
        ({"exclude": "fc"}, r"exclude='fc' is one name"),
        ({"exclude": [3]}, r"exclude=\[3\] is no list of names"),
        ({"data": 5}, "give batches"),
        ({"max_step": True}, "max_step"),
        ({"criterion": None}, "criteria"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, says):
    with pytest.raises(CompressionError, match=says):
        lc.WeightPruning(**{"sparsity": 0.5, **arguments})


@pytest.mark.parametrize("arguments", [{"targets": ["network.7"]}, {"exclude": ["netwrk"]}])
def test_a_pattern_that_matches_nothing_is_refused_before_the_fit(arguments):
    module = User()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(CompressionError, match=r"matches no parameter.*Did you mean 'network"):
        fit(module, lc.WeightPruning(0.5, **arguments), max_epochs=1)
    assert same(dict(module.state_dict()), dict(before))


def test_no_cut_takes_more_than_a_fifth_of_what_is_left_unless_allowed():
    module, pruning = User(), lc.WeightPruning(0.9, schedule="linear")
    fit(module, pruning, max_epochs=4)
    cuts = [entry.data for entry in lc.plan.Record.of(module).journal if entry.kind == "cut"]
    assert len(cuts) > 10
    assert all((cut["reached"] - cut["before"]) / (1 - cut["before"]) < 0.201 for cut in cuts)


@pytest.mark.parametrize("schedule", ["one_shot", Schedule("linear", rounds=2)])
def test_a_cut_of_fixed_size_above_max_step_is_refused_before_training(schedule):
    module = User()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(CompressionError, match=r"max_step is 20%.*max_step="):
        fit(module, lc.WeightPruning(0.9, schedule=schedule), max_epochs=2)
    assert same(dict(module.state_dict()), dict(before))


def test_one_shot_is_one_cut_where_max_step_allows_it():
    module = User()
    fit(module, lc.WeightPruning(0.9, schedule="one_shot", max_step=0.9), max_epochs=1)
    assert [entry.kind for entry in lc.plan.Record.of(module).journal].count("cut") == 1


def test_callables_do_in_the_place_of_names():
    def even(scores, drop, first):
        counts = dict.fromkeys(scores, 0)
        return {**counts, first: drop}

    def negated(evidence):
        return -magnitude(evidence)

    module = User(optimizer="sgd")
    allocation = functools.partial(even, first="network.0.weight")
    pruning = lc.WeightPruning(0.2, criterion=negated, allocation=allocation, schedule=lambda p, final: final * p)
    before = module.network[0].weight.detach().abs().clone()
    zeros, total = pruned(module, pruning)
    assert zeros == round(0.2 * total) == int((module.network[0].weight == 0).sum())
    gone = module.network[0].weight == 0
    assert before[gone].mean() > before[~gone].mean()  # the largest went


def test_weights_that_are_not_finite_stop_the_cut_with_the_layer_named():
    class Breaks(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            with torch.no_grad():
                pl_module.network[4].weight[0, 0] = float("nan")

    with pytest.raises(CompressionError, match="NaN or infinity for 'network.4.weight'"):
        fit(User(), Breaks(), lc.WeightPruning(0.5), max_epochs=1)


def test_two_of_them_in_one_trainer():
    module = User()
    one = lc.WeightPruning(0.8, targets=["network.0"], name="first")
    two = lc.WeightPruning(0.4, exclude=["network.0"], allocation="uniform", name="rest")
    runner = fit(module, one, two, max_epochs=3)
    assert int((module.network[0].weight == 0).sum()) == round(0.8 * 2048)
    rest = [module.network[4].weight, module.network[6].weight]
    assert sum(int((weight == 0).sum()) for weight in rest) == round(0.4 * (512 + 160))
    assert {"compress/sparsity_first", "compress/sparsity_rest"} <= set(runner.callback_metrics)


def test_with_neurons_going_too_the_share_is_kept_and_nothing_is_revived():
    class Growing(Watch):
        def look(self, module):
            self.dead = {}  # shapes change: only exact zeros are looked for
            super().look(module)

    module = User()
    weights, neurons = lc.WeightPruning(0.7), lc.NeuronPruning(0.5)
    fit(module, weights, neurons, Growing(weights), max_epochs=4)
    found = find_weights(module, None)
    total = sum(weight.numel() for weight in found.values())
    assert weights.masks.zeros == sum(int((weight == 0).sum()) for weight in found.values())
    assert weights.masks.zeros >= round(0.7 * total)
    assert weights.reached == weights.masks.zeros / total
    assert neurons.reached == 0.5


def test_nothing_of_ours_stays_after_the_fit():
    module = User()
    runner = fit(module, lc.WeightPruning(0.5), max_epochs=1)
    assert lc.plan.Record.of(module).followers == []
    assert not any(optimizer._optimizer_step_post_hooks for optimizer in runner.optimizers)
    assert list(module.state_dict()) == list(User().state_dict())


def test_masks_cost_nothing_between_edits(monkeypatch):
    """Looking for what to prune in every batch would cost more than the step."""
    calls = []
    from lightning_compress.pruning import weight_pruning

    real = weight_pruning.find_weights
    monkeypatch.setattr(weight_pruning, "find_weights", lambda *arguments: calls.append(1) or real(*arguments))
    pruning = lc.WeightPruning(0.5, schedule=Schedule("linear", rounds=4))
    fit(User(), pruning, train=loader(batch_size=5), max_epochs=2)
    assert len(calls) <= 6


def test_training_goes_on_from_a_pruned_file_and_its_zeros_stay(tmp_path):
    first = User()
    fit(first, lc.WeightPruning(0.9), max_epochs=2)
    lc.save_compressed(first, tmp_path / "pruned.lcz")
    again = lc.load_compressed(tmp_path / "pruned.lcz", into=User())
    before = {name: value.clone() for name, value in again.state_dict().items()}
    callback = lc.WeightPruning(keep_zeros=True)
    fit(again, callback, max_epochs=1)
    for name, value in again.state_dict().items():
        if name.endswith("weight"):
            assert torch.equal(value == 0, before[name] == 0)
            assert not torch.equal(value, before[name])
    assert callback.reached == pytest.approx(0.9, abs=1e-3)
    further = lc.WeightPruning(0.95, keep_zeros=True)
    fit(again, further, max_epochs=3)
    assert further.reached == pytest.approx(0.95, abs=1e-3)
