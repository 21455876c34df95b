"""Shared weights in real fits: few values, zeros kept, and exact whatever else happens."""

import copy

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, StochasticWeightAveraging
from support import User, digits, every_epoch, fit, loader, same, trainer, validation_loader
from torch import nn

import lightning_compress as lc
from lightning_compress.errors import CompressionError
from lightning_compress.quantization import TransparentWeights, WeightClustering, share_weights

WEIGHTS = {
    "mlp": ["network.0.weight", "network.4.weight", "network.6.weight"],
    "conv": ["network.stem.weight", "network.branch.weight", "network.head.weight"],
}


def distinct(module, names=WEIGHTS["mlp"]):
    """Numbers of distinct values besides the zero."""
    state = module.state_dict()
    return [len(state[name][state[name] != 0].unique()) for name in names]


class Watch(Callback):
    """After every step: the weights are the levels, and a zero stays one."""

    def __init__(self, clustering):
        self.clustering, self.steps, self.zeros = clustering, 0, {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        named = dict(pl_module.named_parameters())
        for name in self.clustering.weights.names:
            self.steps += 1
            assert torch.equal(named[name], self.clustering.weights.codebook(name).values)
            zeros = named[name] == 0
            former = self.zeros.get(name)
            assert former is None or former.shape != zeros.shape or not (former & ~zeros).any()
            self.zeros[name] = zeros


@pytest.mark.parametrize("network", WEIGHTS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop"])
def test_each_layer_ends_with_as_many_values_as_asked(network, optimizer):
    module, clustering = User(network, optimizer=optimizer), WeightClustering(8, start=1)
    watch = Watch(clustering)
    fit(module, clustering, watch)
    assert distinct(module, WEIGHTS[network]) == [8, 8, 8]
    assert watch.steps > 30
    assert clustering.on_target
    assert list(module.state_dict()) == list(User(network).state_dict())


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.1},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"precision": "64-true"},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "precision": "bf16-mixed"},
    ],
    ids=str,
)
def test_values_are_shared_whatever_the_trainer_does(options):
    module, clustering = User("conv"), WeightClustering(6, start=1)
    fit(module, clustering, Watch(clustering), **options)
    assert all(number <= 6 for number in distinct(module, WEIGHTS["conv"]))


def test_a_level_is_trained_by_the_summed_gradient_of_its_members():
    """The first step against the same levels as parameters of a plain network."""
    torch.manual_seed(0)
    module = User(optimizer="sgd", schedule=False)
    for part in module.network:
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    book = share_weights(module.network[0].weight.detach(), 4)
    levels = nn.Parameter(book.levels.clone())
    images, labels = next(iter(loader(shuffle=False)))
    plain = copy.deepcopy(module.network)
    weight = levels[book.assignment.long() - 1]
    logits = plain[1:](nn.functional.linear(images, weight, plain[0].bias))
    nn.functional.cross_entropy(logits, labels).backward()
    optimizer = torch.optim.Adam([levels], lr=0.01)
    optimizer.step()

    clustering = WeightClustering(4, start=0, learning_rate=0.01, targets=["network.0"])
    fit(module, clustering, train=loader(shuffle=False), max_steps=1, max_epochs=1, validation=False)
    torch.testing.assert_close(clustering.weights.codebook("network.0.weight").levels, levels.detach())


def test_learning_rate_zero_leaves_the_levels_where_k_means_put_them():
    class Before(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 0:
                self.book = share_weights(pl_module.network[0].weight, 4)

    before = Before()
    module = User()
    fit(module, before, WeightClustering(4, start=0, learning_rate=0.0), max_epochs=1)
    assert torch.equal(module.network[0].weight, before.book.values)


def test_pruned_zeros_are_kept_and_need_no_cluster():
    module = User()
    clustering, pruning = WeightClustering(4, start=2), lc.WeightPruning(0.6, max_step=0.5)
    fit(module, clustering, pruning, Watch(clustering), max_epochs=4)
    state = module.state_dict()
    zeros = sum(int((state[name] == 0).sum()) for name in WEIGHTS["mlp"])
    assert zeros == pruning.masks.zeros == round(0.6 * (2048 + 512 + 160))
    assert distinct(module) == [4, 4, 4]


def test_weights_pruned_after_the_clustering_stay_zero():
    module = User()
    clustering = WeightClustering(4, start=0)
    fit(module, clustering, lc.WeightPruning(0.7), Watch(clustering), max_epochs=4)
    assert sum(int((module.state_dict()[name] == 0).sum()) for name in WEIGHTS["mlp"]) == round(0.7 * 2720)
    assert all(1 < number <= 4 for number in distinct(module))


@pytest.mark.parametrize("options", [{}, {"refresh": 1}, {"objective": "rate", "rate": 1e-4, "refresh": 1}], ids=str)
def test_codebooks_follow_neurons_that_go(options):
    module = User()
    clustering = WeightClustering(5, start=0.0, **options)
    fit(module, clustering, lc.NeuronPruning(0.5), Watch(clustering), max_epochs=5)
    assert module.network[0].out_features <= 20
    assert all(1 < number <= 5 for number in distinct(module))
    assert clustering.weights.codebook("network.0.weight").assignment.shape == module.network[0].weight.shape


def test_a_rolled_back_cut_of_neurons_brings_the_codebooks_back():
    module = User()
    clustering = WeightClustering(5, start=0)
    recover = lc.Recovery("val_acc", mode="min", tolerance=0.0, patience=1)  # accuracy rises: it never comes back
    runner = fit(module, clustering, lc.NeuronPruning(0.5, recover=recover), Watch(clustering), max_epochs=6)
    kinds = [entry.kind for entry in lc.plan.Record.of(module).journal]
    assert "rollback" in kinds
    assert all(number <= 5 for number in distinct(module))
    assert runner.state.finished


def test_stages_cluster_a_few_layers_at_a_time():
    class Count(Callback):
        seen: list

        def on_train_epoch_end(self, trainer, pl_module):
            self.seen = [*getattr(self, "seen", []), len(clustering.weights.names)]

    clustering, count = WeightClustering(4, start=1, stages=3, end=4), Count()
    fit(User(), clustering, count, max_epochs=5)
    assert count.seen == [0, 1, 2, 3, 3]


def test_the_gate_releases_the_next_layers_and_takes_back_what_does_not_recover():
    recover = lc.Recovery("val_acc", tolerance=1.0, patience=1)
    module, clustering = User(), WeightClustering(4, start=0, stages=3, recover=recover)
    fit(module, clustering, max_epochs=5)
    assert clustering.on_target
    assert distinct(module) == [4, 4, 4]

    hopeless = lc.Recovery("val_acc", mode="min", tolerance=0.0, patience=1)  # accuracy rises: it never comes back
    module, clustering = User(), WeightClustering(16, start=1, recover=hopeless)
    fit(module, clustering, max_epochs=5)
    assert all(number > 100 for number in distinct(module)[:2])
    assert clustering.weights.names == []


def test_clusters_by_name():
    module = User()
    fit(module, WeightClustering({"network.0": 3, "network.6.*": 5, "*": 7}, start=0), max_epochs=1)
    assert distinct(module) == [3, 7, 5]


def test_refreshed_weights_change_their_level_and_fixed_ones_do_not():
    class Levels(Callback):
        def __init__(self, clustering):
            self.clustering, self.seen = clustering, []

        def on_train_epoch_end(self, trainer, pl_module):
            self.seen.append(self.clustering.weights.codebook("network.0.weight").assignment.clone())

    for refresh in (None, 1):
        L.seed_everything(1, verbose=False)
        clustering = WeightClustering(8, start=0, refresh=refresh)
        levels = Levels(clustering)
        fit(User(), clustering, levels, max_epochs=4)
        assert torch.equal(levels.seen[0], levels.seen[-1]) == (refresh is None)


def test_rate_prunes_by_itself_and_a_higher_rate_takes_smaller_files(tmp_path):
    sizes = []
    for rate in (1e-5, 1e-3):
        L.seed_everything(1, verbose=False)
        module = User()
        fit(module, WeightClustering(16, objective="rate", rate=rate, precision="float16"), max_epochs=4)
        sizes.append(lc.save_compressed(module.network, tmp_path / f"{rate}.lcz").bytes)
    assert (module.network[0].weight == 0).float().mean() > 0.3
    assert sizes[1] < 0.7 * sizes[0]


def test_a_rate_that_rises_prunes_more_and_more():
    class Zeros(Callback):
        def __init__(self):
            self.seen = []

        def on_train_epoch_end(self, trainer, pl_module):
            self.seen.append(int((pl_module.network[0].weight == 0).sum()))

    L.seed_everything(1, verbose=False)
    zeros = Zeros()
    rising = WeightClustering(8, objective="rate", rate=3e-3, first_rate=1e-5, refresh=1, start=0)
    fit(User(), rising, zeros, max_epochs=6)
    assert zeros.seen == sorted(zeros.seen)
    assert zeros.seen[0] < zeros.seen[2] < zeros.seen[4] == zeros.seen[5]


def test_training_goes_on_from_a_file_with_its_zeros_and_its_shared_values(tmp_path):
    L.seed_everything(1, verbose=False)
    first = User()
    fit(first, lc.WeightPruning(0.8), WeightClustering(4, start=2), max_epochs=3)
    lc.save_compressed(first, tmp_path / "model.lcz")
    module = lc.load_compressed(tmp_path / "model.lcz", into=User())
    before = {name: weight.detach().clone() for name, weight in module.named_parameters() if weight.dim() > 1}
    clustering = WeightClustering(4, start=0)
    fit(module, clustering, lc.WeightPruning(0.8, schedule="one_shot", max_step=1.0), max_epochs=1)
    for name, old in before.items():
        new = module.get_parameter(name).detach()
        assert torch.equal(new == 0, old == 0)
        assert not torch.equal(new, old)
        for value in old.unique():
            assert len(new[old == value].unique()) == 1


def test_importance_waits_for_gradients():
    module = User()
    clustering = WeightClustering(8, objective="rate", rate=1e-3, importance="gradients", start=0)
    runner = fit(module, clustering, max_epochs=3)
    cut = next(entry for entry in lc.plan.Record.of(module).journal if entry.kind == "cut")
    assert cut.step == 20
    assert runner.callback_metrics["compress/layers_clustered"] == 1.0


def test_levels_in_half_precision_take_two_bytes_in_the_file(tmp_path):
    module = User()
    fit(module, WeightClustering(32, start=0, precision="float16"), max_epochs=1)
    weight = module.network[0].weight.detach()
    assert torch.equal(weight.half().float(), weight)
    summary = lc.save_compressed(module, tmp_path / "m.lcz")
    restored = lc.load_compressed(tmp_path / "m.lcz", into=User())
    assert same(dict(restored.state_dict()), dict(module.state_dict()))
    assert summary.bytes < 4000


GATE = {"monitor": "val_acc", "tolerance": 0.1, "patience": 1}
CASES = {
    "plain": lambda: [WeightClustering(8, start=1)],
    "stages": lambda: [WeightClustering(8, start=0.2, stages=3, end=0.8)],
    "pruned": lambda: [lc.WeightPruning(0.6), WeightClustering(8, start=2)],
    "neurons": lambda: [lc.NeuronPruning(0.4), WeightClustering(8, start=2, refresh=1)],
    "rate": lambda: [WeightClustering(8, objective="rate", rate=1e-4, importance="gradients", refresh=2, start=1)],
    "rising rate": lambda: [WeightClustering(8, objective="rate", rate=1e-3, first_rate=1e-5, refresh=1, start=0)],
    "random": lambda: [WeightClustering(8, init="random", start=3, precision="float16")],
    "gated": lambda: [WeightClustering(4, start=1, stages=3, recover=GATE)],
}


def assert_equal_fits(one, two):
    assert same(dict(one.lightning_module.state_dict()), dict(two.lightning_module.state_dict()))
    for a, b in zip(one.callbacks, two.callbacks, strict=False):
        if isinstance(a, WeightClustering):
            assert same(a.state_dict(), b.state_dict())


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("case", CASES)
def test_resumed_fit_equals_uninterrupted_fit(tmp_path, case, epoch):
    L.seed_everything(1, verbose=False)
    whole = fit(User(), *CASES[case](), every_epoch(tmp_path), max_epochs=6)
    L.seed_everything(2, verbose=False)
    resumed = fit(User(), *CASES[case](), max_epochs=6, ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
    assert_equal_fits(whole, resumed)


@pytest.mark.parametrize("case", ["plain", "rate"])
@pytest.mark.parametrize("step", [13, 36])
def test_resume_in_mid_epoch_is_exact(tmp_path, case, step):
    L.seed_everything(1, verbose=False)
    checkpoint = every_epoch(tmp_path, every_n_train_steps=1)
    checkpoint.filename = "{step}"
    whole = fit(User(), *CASES[case](), checkpoint, max_epochs=4)
    L.seed_everything(2, verbose=False)
    resumed = fit(User(), *CASES[case](), max_epochs=4, ckpt_path=tmp_path / f"step={step}.ckpt")
    assert_equal_fits(whole, resumed)


def test_a_checkpoint_loads_in_the_plain_module_and_is_compact(tmp_path):
    module = User()
    fit(module, WeightClustering(8, start=0), every_epoch(tmp_path), max_epochs=2)
    checkpoint = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    User().load_state_dict(checkpoint["state_dict"], strict=True)
    packed = checkpoint["callbacks"]["WeightClustering"]["compression"]["weights"]["network.0.weight"]["assignment"]
    assert packed.numel() == 2048 * 4 // 8


def test_a_fresh_module_is_tested_as_well(tmp_path):
    runner = fit(User(), WeightClustering(4, start=1), every_epoch(tmp_path), max_epochs=3)
    accuracy = runner.callback_metrics["val_acc"]
    for callbacks in ([WeightClustering(4, start=1)], []):
        found = trainer(*callbacks).test(
            User(), validation_loader(), ckpt_path=tmp_path / "epoch=2.ckpt", verbose=False
        )
        assert found[0]["test_acc"] == pytest.approx(float(accuracy))


@pytest.mark.parametrize("average", [EMAWeightAveraging, lambda: StochasticWeightAveraging(0.05, 0.5)])
def test_an_average_of_the_weights_shares_values_too(tmp_path, average):
    class Validated(Callback):
        seen = 0

        def on_validation_batch_end(self, trainer, pl_module, *_):
            self.seen = max(self.seen, *distinct(pl_module)) if clustering.weights.names else 0

    module, clustering, validated = User(), WeightClustering(6, start=1), Validated()
    fit(module, average(), clustering, validated, every_epoch(tmp_path), max_epochs=4)
    assert distinct(module) == [6, 6, 6]
    assert validated.seen == 6
    for epoch in (1, 3):
        state = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)["state_dict"]
        assert [len(state[name].unique()) for name in WEIGHTS["mlp"]] == [6, 6, 6]


def test_a_second_fit_goes_on_and_another_module_starts_over():
    clustering, first, second = WeightClustering(4, start=0), User(), User()
    fit(first, clustering, max_epochs=1)
    after = first.network[0].weight.detach().clone()
    fit(first, clustering, max_epochs=2)
    assert distinct(first) == [4, 4, 4]
    assert not torch.equal(first.network[0].weight, after)
    fit(second, clustering, max_epochs=1)
    assert distinct(second) == [4, 4, 4]
    assert torch.equal(clustering.weights.codebook("network.0.weight").values, second.network[0].weight)


def test_tied_weights_are_clustered_once():
    module = User()
    module.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    module.network[2].weight = module.network[0].weight
    clustering = WeightClustering(6, start=0)
    fit(module, clustering, max_epochs=1)
    assert module.network[2].weight is module.network[0].weight
    assert clustering.weights.names == ["network.0.weight", "network.4.weight"]


def test_two_optimizers_train_the_levels_of_their_own_weights():
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
    clustering = WeightClustering(6, start=0)
    fit(module, clustering, Watch(clustering), max_epochs=2)
    assert distinct(module) == [6, 6, 6]


def test_two_of_them_divide_the_layers():
    module = User()
    one = WeightClustering(4, start=0, targets=["network.0"], name="first")
    two = WeightClustering(8, start=0, exclude=["network.0"], name="rest")
    fit(module, one, two, max_epochs=1)
    assert distinct(module) == [4, 8, 8]
    with pytest.raises(CompressionError, match=r"would both cluster 'network.0.weight'"):
        fit(User(), WeightClustering(4), WeightClustering(8, name="other"), max_epochs=1)


def test_weights_that_another_callback_decides_are_refused_before_training():
    module = User()
    other = TransparentWeights(module, "SomeQuantizer")
    other.attach("network.0.weight", torch.sign)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(CompressionError, match=r"WeightClustering and SomeQuantizer.*exclude=\('network.0',\)"):
        fit(module, WeightClustering(4), max_epochs=1)
    assert same(dict(before), dict(module.state_dict()))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"clusters": 0}, "whole number from 1 to 256"),
        ({"clusters": 257}, "whole number from 1 to 256"),
        ({"clusters": {"network.0": 1.5}}, "whole number from 1 to 256"),
        ({"init": "linar"}, "Did you mean 'linear'"),
        ({"objective": "rat"}, "Did you mean 'rate'"),
        ({"objective": "rate"}, "needs the price of a bit"),
        ({"objective": "rate", "rate": -1.0}, "price of a bit"),
        ({"rate": 1e-4}, 'needs objective="rate"'),
        ({"importance": "hessian"}, '"gradients" or None'),
        ({"refresh": 0}, "refresh=0"),
        ({"objective": "rate", "rate": 1e-3, "first_rate": 1e-4}, "it needs both"),
        ({"objective": "rate", "rate": 1e-3, "first_rate": 1e-2, "refresh": 1}, "at most the rate"),
        ({"stages": 0}, "stages=0"),
        ({"end": 0.9}, "without stages"),
        ({"start": 1.5}, "start=1.5"),
        ({"precision": "float8"}, "precision='float8' is unknown"),
        ({"learning_rate": -1}, "learning_rate"),
        ({"targets": "fc"}, r"write targets=\('fc',\)"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, says):
    with pytest.raises(CompressionError, match=says):
        WeightClustering(**arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"targets": ["network.9"]}, "matches no parameter"),
        ({"clusters": {"network.0": 4}}, r"says nothing of 'network.4.weight'.*'\*'"),
    ],
)
def test_patterns_are_checked_before_training(arguments, says):
    module = User()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(CompressionError, match=says):
        fit(module, WeightClustering(**arguments), max_epochs=1)
    assert same(dict(before), dict(module.state_dict()))


def test_weights_that_are_not_finite_are_refused_with_the_layers_name():
    class Breaks(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            with torch.no_grad():
                pl_module.network[4].weight[0, 0] = float("inf")

    with pytest.raises(CompressionError, match="'network.4.weight': NaN or infinite"):
        fit(User(), Breaks(), WeightClustering(4, start=0), max_epochs=1)


def test_nothing_of_ours_stays_after_the_fit():
    module = User()
    runner = fit(module, WeightClustering(4, start=0), max_epochs=1)
    assert lc.plan.Record.of(module).followers == []
    assert not any(optimizer._optimizer_step_post_hooks for optimizer in runner.optimizers)
    images, _ = digits()
    assert copy.deepcopy(module).eval()(images[:4]).shape == (4, 10)
