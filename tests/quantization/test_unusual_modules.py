"""Fake quantization and few values where networks are not rows of layers, and fits not the first of their module."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from support import ConvNet, User, every_epoch, fit, loader, same, trainer, validation_loader
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import lightning_compress as lc
from lightning_compress.errors import CompressionError
from lightning_compress.quantization import BinaryConnect, QuantizationAwareTraining, TernaryWeights, WeightClustering
from lightning_compress.quantization.settings import SCALES

LOW = {"edge_bits": None, "add_bits": None}


class Runs(User):
    """A network that is run by ``run(network, images)``."""

    def __init__(self, network, run=None):
        super().__init__(schedule=False)
        self.network, self.run = network, run or (lambda network, images: network(images))

    def forward(self, images):
        return self.run(self.network, images)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


def small_fit(module, *callbacks, **kwargs):
    return fit(module, *callbacks, train=loader(0, 120), **{"max_epochs": 1, **kwargs})


def rows(layer):
    return max(row.unique().numel() for row in layer.weight.detach())


def layers(**named):
    return nn.ModuleDict(named)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
@pytest.mark.parametrize("scale", SCALES)
def test_networks_in_other_precisions_are_rounded_too(scale, precision):
    module = User("conv")
    small_fit(module, QuantizationAwareTraining(4, 4, scale=scale), precision=precision)
    assert rows(module.network.branch) <= 15


def test_both_inputs_of_a_bilinear_layer_and_packed_sequences_are_rounded():
    def run(network, images):
        sequences = pack_padded_sequence(images.view(-1, 8, 8), torch.full((len(images),), 8), batch_first=True)
        return network["both"](network["lstm"](sequences)[1][0][-1], images)

    read = []
    module = Runs(layers(lstm=nn.LSTM(8, 8), both=nn.Bilinear(8, 64, 10)), run)
    quantization = QuantizationAwareTraining(8, 2, **LOW)
    small_fit(module, quantization)
    runner = trainer(quantization)
    module.network["both"].forward = lambda *inputs: read.append(inputs) or inputs[0].new_zeros(len(inputs[0]), 10)
    runner.validate(module, validation_loader(), verbose=False)
    assert all(1 < value.unique().numel() <= 4 for value in read[0])
    assert all(one["ready"] for one in quantization.quantizers["activations"].values())


def test_layers_with_one_weight_all_read_rounded_inputs():
    net = layers(first=nn.Linear(64, 64), second=nn.Linear(64, 64), head=nn.Linear(64, 10))
    net["second"].weight = net["first"].weight
    module = Runs(net, lambda n, x: n["head"](n["second"](n["first"](x).relu()).relu()))
    quantization = QuantizationAwareTraining(4, 4)
    small_fit(module, quantization)
    assert list(quantization.quantizers["inputs"]) == ["network.first", "network.second", "network.head"]
    assert list(quantization.quantizers["weights"]) == ["network.first.weight", "network.head.weight"]


def test_layers_that_are_never_called_are_named_in_the_journal():
    def run(network, images):
        words = nn.functional.linear(images.view(-1, 8, 8), network["first"].weight)
        return network["head"](network["attention"](words, words, words)[0].flatten(1))

    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    module = Runs(layers(first=nn.Linear(8, 8), attention=attention, head=nn.Linear(64, 10)), run)
    quantization = QuantizationAwareTraining(4, 4, **LOW)
    small_fit(module, quantization)
    assert max(map(rows, (module.network["first"], attention.out_proj))) <= 15
    assert quantization.quantizers["activations"]["network.attention:input"]["ready"]
    (entry,) = (one.text for one in lc.plan.Record.of(module).journal if "stays in floating point" in one.text)
    assert "network.first, network.attention.out_proj read" in entry


@pytest.mark.parametrize("callback", [QuantizationAwareTraining, BinaryConnect, TernaryWeights])
def test_lazy_layers_and_weights_that_are_not_finite_are_refused_by_name(callback):
    with pytest.raises(CompressionError, match=r"'network.0.weight' has no shape yet"):
        small_fit(Runs(nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(10))), callback())
    module = User()
    module.network[4].weight.data[0, 0] = float("nan")
    with pytest.raises(CompressionError, match=r"'network.4.weight' holds NaN"):
        small_fit(module, callback())


@pytest.mark.parametrize("scale", SCALES)
def test_a_layer_that_begins_at_zero_learns(scale):
    L.seed_everything(1, verbose=False)
    module = User(schedule=False)
    nn.init.zeros_(module.network[6].weight)
    runner = fit(module, QuantizationAwareTraining(4, 4, scale=scale, **LOW), max_epochs=4)
    assert runner.callback_metrics["val_acc"] > 0.5


@pytest.mark.parametrize("scale", SCALES)
def test_symmetric_activations_of_two_bits(scale):
    L.seed_everything(1, verbose=False)
    quantization = QuantizationAwareTraining(8, 2, scale=scale, symmetric=(True, True))
    assert fit(User("conv"), quantization, max_epochs=3).callback_metrics["val_acc"] > 0.5


@pytest.mark.parametrize("scale", SCALES)
def test_a_ladder_leaves_scales_that_cover_the_weights(scale):
    L.seed_everything(1, verbose=False)
    quantization = QuantizationAwareTraining({0: 8, 0.75: 3}, {0: 8, 0.75: 3}, scale=scale, **LOW)
    module = User("conv", schedule=False)
    runner = fit(module, quantization, max_epochs=4)
    assert runner.callback_metrics["val_acc"] > 0.6
    assert rows(module.network.branch) <= 7


@pytest.mark.parametrize(
    ("build", "reentrant"),
    [
        (lambda: QuantizationAwareTraining(4, None, scale="lsq"), True),
        (lambda: QuantizationAwareTraining(4, 4, scale="lsq"), False),
        (lambda: BinaryConnect("stochastic"), False),
    ],
)
def test_activation_checkpointing_computes_the_same(build, reentrant):
    """What runs again in the backward sees the rounded weights again."""

    def again(network, images):
        return network[2](checkpoint(network[:2], images.requires_grad_(), use_reentrant=reentrant))

    states = []
    for run in (None, again):
        L.seed_everything(1, verbose=False)
        module = Runs(nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)), run)
        small_fit(module, build())
        states.append(dict(module.state_dict()))
    assert same(*states)


def test_weights_that_torch_prunes_end_on_the_grid():
    module = User()
    prune.l1_unstructured(module.network[4], "weight", 0.5)
    small_fit(module, QuantizationAwareTraining(3, 3, **LOW))
    module.network(torch.rand(4, 64))  # computes the weight anew
    assert rows(module.network[4]) <= 7
    assert int((module.network[4].weight == 0).sum()) >= 256


@pytest.mark.parametrize("average", [EMAWeightAveraging, lambda: StochasticWeightAveraging(0.01, 0.5)])
@pytest.mark.parametrize("build", [lambda: QuantizationAwareTraining(4, 4, scale="lsq"), lambda: TernaryWeights("ttq")])
def test_an_average_of_the_weights_is_validated_and_left_rounded(build, average):
    module, callback = User("conv"), build()
    validated = small_fit(module, average(), callback, max_epochs=4).callback_metrics["val_acc"].item()
    assert rows(module.network.branch) <= 15
    assert trainer(callback).validate(module, validation_loader(), verbose=False)[0]["val_acc"] == validated


def test_layers_called_by_name_read_signs():
    net = layers(a=nn.Linear(64, 32), norm=nn.BatchNorm1d(32), b=nn.Linear(32, 32), c=nn.Linear(32, 10))
    module = Runs(net, lambda n, x: n["c"](n["b"](input=n["norm"](n["a"](x)))))
    small_fit(module, BinaryConnect(activations="sign"))
    assert net["b"].weight.unique().numel() == 2


# -- not the first fit, not this callback ------------------------------------------------------------------------------


def test_in_a_second_fit_scales_follow_until_the_freeze():
    quantization, module = QuantizationAwareTraining(4, 4, freeze=1), User()
    small_fit(module, quantization, max_epochs=2)
    before = quantization.quantizers["activations"]["network.4:input"]["scale"]
    small_fit(module, quantization, max_epochs=2)
    assert not torch.equal(before, quantization.quantizers["activations"]["network.4:input"]["scale"])


@pytest.mark.parametrize("times", [{"start": 0.5, "freeze": 0.5}, {"start": 1, "freeze": 0.25}, {"freeze": 0}])
def test_a_freeze_that_is_no_later_than_the_start_is_refused(times):
    with pytest.raises(CompressionError, match="Freeze later"):
        small_fit(User(), QuantizationAwareTraining(**times), max_epochs=4)


def test_a_batch_norm_that_the_user_froze_stays_frozen():
    module = User("conv")
    module.network.norm.eval()
    small_fit(module, QuantizationAwareTraining(freeze_batch_norm=0.5), max_epochs=2)
    assert not module.network.norm.training
    module = User("conv")
    small_fit(module, QuantizationAwareTraining(freeze_batch_norm=0.5), max_epochs=2)
    assert module.network.norm.training


@pytest.mark.parametrize("options", [{"scale": "lsq"}, {"granularity": "tensor"}, {"symmetric": (True, True)}], ids=str)
def test_scales_of_another_kind_are_refused(tmp_path, options):
    small_fit(User(), QuantizationAwareTraining(4, 4), every_epoch(tmp_path))
    runner = trainer(QuantizationAwareTraining(4, 4, **options))
    with pytest.raises(CompressionError, match=rf"written with {next(iter(options))}="):
        runner.test(User(), validation_loader(), ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)


def test_groups_of_inputs_that_are_to_be_taken_away_are_refused():
    grouped = QuantizationAwareTraining(4, 4, granularity="group", group_size=8)
    with pytest.raises(CompressionError, match=r"NeuronPruning.*granularity='channel'"):
        small_fit(User(), grouped, lc.NeuronPruning(0.3))


@pytest.mark.parametrize("clusters", [{"nothing": 3, "*": 8}, {"network.5": 3, "*": 8}])
def test_patterns_for_clusters_that_match_nothing_are_refused(clusters):
    with pytest.raises(CompressionError, match="matches no weight"):
        small_fit(User(), WeightClustering(clusters))


def test_a_network_of_its_own_is_quantized_without_a_trainer():
    """``FakeQuantization`` is the machinery without Lightning; a frozen layer is rounded like any other."""
    net = ConvNet()
    net.stem.requires_grad_(False)
    quantization = lc.quantization.FakeQuantization(net, lc.quantization.settings.Settings(2, 8, edge_bits=None))
    quantization.attach()
    quantization.enable()
    net(torch.rand(2, 64)).sum().backward()
    quantization.finalize_()
    quantization.detach()
    assert rows(net.stem) <= 3
    assert net.stem.weight.grad is None
