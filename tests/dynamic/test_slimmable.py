"""One network at many widths: switched equals exported, statistics of their own, files, resumes, neighbours."""

import copy
import inspect
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from dynamic.exiting import Deep, DeepUser, Encoder
from hydra.utils import instantiate
from omegaconf import OmegaConf
from support import ConvNet, User, digits, every_epoch, fit, leftovers, loader, same
from torch import nn

import lightning_compress as lc
from lightning_compress.dynamic import (
    EarlyExits,
    SlimmableWidths,
    StochasticDepth,
    export_width,
    load_widths,
    make_slimmable,
    set_width,
)
from lightning_compress.errors import CompressionError
from lightning_compress.surgery import TracingInput

IMAGES, LABELS = digits()
CALL = TracingInput("", (IMAGES[:8],), {})
CONF = Path(lc.__file__).parents[1] / "conf" / "callbacks" / "slimmable_widths.yaml"
WIDTHS = (0.25, 0.5, 1.0)


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 1), nn.GroupNorm(4, 16), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.fc = nn.Linear(16 * 64, 10)

    def forward(self, images):
        return self.fc(self.layers(images.view(-1, 1, 8, 8)))


class RowLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.fc = nn.Linear(16, 10)

    def forward(self, images):
        return self.fc(self.lstm(images.view(-1, 8, 8))[0][:, -1])


def slimmed(*others, max_epochs=3, seed=1, module=None, ckpt_path=None, train=None, **options):
    torch.manual_seed(seed)
    module = module or DeepUser()
    callback = SlimmableWidths(**{"widths": WIDTHS, **options})
    fit(module, *others, callback, max_epochs=max_epochs, ckpt_path=ckpt_path, train=train)
    return module.eval()


@pytest.mark.parametrize("build", [Deep, ConvNet, Depthwise, Encoder], ids=lambda build: build.__name__)
@pytest.mark.parametrize("width", [0.25, 0.5, 1.0])
def test_the_exported_width_equals_the_switched_network(build, width, tmp_path):
    torch.manual_seed(0)
    network = build().eval()
    whole, state = network(IMAGES[:30]), copy.deepcopy(network.state_dict())
    slim = make_slimmable(network, CALL, WIDTHS)
    if slim.statistics[0.5]:
        slim.recalibrate([IMAGES[:100], IMAGES[100:200]])
    set_width(network, width)
    switched = network(IMAGES[:30])
    assert same(dict(network.state_dict()), dict(state))
    small = export_width(network, width)
    assert torch.allclose(small(IMAGES[:30]), switched, atol=1e-6)
    assert (sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in network.parameters())) is (width < 1)
    lc.save_compressed(small, tmp_path / "small.lcz")
    loaded = lc.load_compressed(tmp_path / "small.lcz", into=build()).eval()
    assert torch.equal(loaded(IMAGES[:30]), small(IMAGES[:30]))
    set_width(network, 1.0)
    assert torch.equal(network(IMAGES[:30]), whole)
    assert "forward" not in vars(network)


def test_gradients_reach_the_units_in_use_and_no_others():
    network = Deep()
    slim = make_slimmable(network, CALL, WIDTHS)
    with slim.at(0.5):
        loss = network(IMAGES[:10]).sum()
    loss.backward()
    gradient = network.stages[1][0].weight.grad
    assert gradient.shape == (16, 8, 3, 3)
    assert bool(gradient[:8, :4].any())
    assert not bool(gradient[8:].any())
    assert not bool(gradient[:, 4:].any())
    assert network.stages[1][0].out_channels == 16


def test_each_width_has_statistics_of_its_own():
    network = Deep().train()
    slim = make_slimmable(network, CALL, WIDTHS)
    before = network.stages[0][1].running_mean.clone()
    with slim.at(0.5):
        network(IMAGES[:50])
    assert torch.equal(network.stages[0][1].running_mean, before)
    assert bool(slim.statistics[0.5]["stages.0.1"]["running_mean"].any())
    assert not bool(slim.statistics[0.25]["stages.0.1"]["running_mean"].any())
    assert int(slim.statistics[0.5]["stages.0.1"]["num_batches_tracked"]) == 1


def test_an_error_inside_puts_everything_back():
    network = Deep().eval()
    slim = make_slimmable(network, CALL, WIDTHS)
    expected = network(IMAGES[:5])
    with pytest.raises(ZeroDivisionError), slim.at(0.25):
        raise ZeroDivisionError
    assert torch.equal(network(IMAGES[:5]), expected)


@pytest.mark.parametrize("statistics", ["separate", "recalibrated"])
def test_all_widths_learn(statistics):
    module = slimmed(max_epochs=4, statistics=statistics, train=loader(0, 1000, batch_size=20))
    accuracies = {}
    for width in WIDTHS:
        small = export_width(module, width)
        with torch.no_grad():
            accuracies[width] = float((small(IMAGES[1000:1200]).argmax(1) == LABELS[1000:1200]).double().mean())
    assert min(accuracies.values()) > 0.2
    assert isinstance(small, DeepUser)


@pytest.mark.parametrize("options", [{"sampled": None}, {"sampled": 0}, {"distillation": 0.0}, {"distillation": 0.5}])
def test_every_rule_trains(options):
    module = slimmed(widths=(0.25, 0.5, 0.75), max_epochs=1, **options)
    assert torch.isfinite(export_width(module, 0.5)(IMAGES[:5])).all()


def test_a_lightning_module_is_switched_with_its_network():
    module = slimmed()
    set_width(module, 0.5)
    inner, outer = module.network(IMAGES[:9]), module(IMAGES[:9])
    assert torch.equal(inner, outer)
    assert torch.allclose(outer, export_width(module, 0.5)(IMAGES[:9]), atol=1e-6)
    set_width(module, 0.25)
    assert not torch.allclose(module(IMAGES[:9]), outer)
    set_width(module, 1.0)
    assert "forward" not in vars(module.network)


@pytest.mark.parametrize("others", [lambda: [], lambda: [lc.QuantizationAwareTraining(4, 8, scale="lsq")]])
def test_resumed_fit_equals_uninterrupted_fit(tmp_path, others):
    whole = slimmed(every_epoch(tmp_path), *others(), max_epochs=3)
    resumed = slimmed(*others(), seed=9, max_epochs=3, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert same(dict(whole.state_dict()), dict(resumed.state_dict()))
    for width in (0.25, 0.5):
        assert torch.equal(export_width(whole, width)(IMAGES[:9]), export_width(resumed, width)(IMAGES[:9]))


def test_widths_come_back_from_a_checkpoint(tmp_path):
    module = slimmed(every_epoch(tmp_path), max_epochs=2)
    expected = export_width(module, 0.5)(IMAGES[:9])
    loaded = lc.load_from_checkpoint(DeepUser, tmp_path / "epoch=1.ckpt").eval()
    with pytest.raises(CompressionError, match="has no widths"):
        set_width(loaded, 0.5)
    load_widths(loaded, tmp_path / "epoch=1.ckpt", CALL)
    assert torch.equal(export_width(loaded, 0.5)(IMAGES[:9]), expected)


def test_nothing_is_left_on_the_module():
    module = DeepUser()
    before = leftovers(module)
    slimmed(module=module, max_epochs=1)
    after = leftovers(module)
    assert after[1:] == before[1:]
    assert not any("forward" in vars(part) for part in module.modules())


@pytest.mark.parametrize(
    "other",
    [
        lambda: lc.WeightPruning(0.5),
        lambda: lc.Distillation(Deep(), fidelity=False),
        lambda: lc.QuantizationAwareTraining(8, 8),
        lambda: lc.WeightClustering(8),
        lambda: StochasticDepth(0.5, blocks=("network.stages.2",)),
    ],
    ids=["pruning", "taught", "quantized", "clustered", "depth"],
)
def test_it_works_beside_the_other_callbacks(other):
    module = slimmed(other(), max_epochs=2)
    set_width(module, 0.5)
    switched = module(IMAGES[:9])
    assert torch.allclose(export_width(module, 0.5)(IMAGES[:9]), switched, atol=1e-6)
    assert torch.isfinite(switched).all()


def test_pruned_weights_are_zeros_at_every_width():
    module = slimmed(lc.WeightPruning(0.6), max_epochs=2)
    small = export_width(module, 0.5)
    for place in ("stages.1.0", "fc"):
        whole, part = (one.network.get_submodule(place).weight for one in (module, small))
        assert torch.equal(part, whole[: part.shape[0], : part.shape[1]])
    assert bool((part == 0).any())


class Looking(Deep):
    """Notes the weights that its second convolution works with while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def forward(self, images):
        if self.training and torch.is_grad_enabled():
            self.seen.append(self.stages[1][0].weight.detach().clone())
        return super().forward(images)


@pytest.mark.parametrize(
    ("other", "values"),
    [
        (lambda: lc.QuantizationAwareTraining(3, None), 7),
        (lambda: lc.QuantizationAwareTraining(3, 8, scale="lsq"), 7),
        (lambda: lc.TernaryWeights(), 3),
    ],
    ids=["observed", "learned", "ternary"],
)
def test_a_width_uses_parts_of_the_rounded_weights(other, values):
    module = DeepUser()
    module.network = Looking()
    slimmed(other(), module=module, widths=(0.5,), max_epochs=1)
    pairs = list(pairwise(module.network.seen[-10:]))
    pairs = [(whole, part) for whole, part in pairs if len(part) < len(whole)]
    assert len(pairs) == 5
    for whole, part in pairs:
        assert torch.equal(part, whole[:8, :4])
        assert all(len(channel.unique()) <= values for channel in part)
    exported = export_width(module, 0.5).network.stages[1][0].weight
    assert all(len(channel.unique()) <= values for channel in exported)


def test_scales_learn_from_the_widths_too():
    def learned(weight):
        module = DeepUser()
        callback = lc.QuantizationAwareTraining(3, None, scale="lsq")
        slimmed(callback, module=module, widths=(0.5,), weight=weight, max_epochs=1)
        return callback.quantizers["weights"]["network.stages.1.0.weight"]["scale"]

    assert not torch.equal(learned(0.0), learned(1.0))


def test_a_width_can_be_quantized_in_a_fit_of_its_own():
    small = export_width(slimmed(max_epochs=1), 0.5)
    fit(small, lc.QuantizationAwareTraining(8, 8), max_epochs=1)
    assert torch.isfinite(small(IMAGES[:5])).all()


class Concatenated(nn.Module):
    """What one layer reads is made by two: its narrower input is not its first channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.fc = nn.Linear(64, 8), nn.Linear(64, 8), nn.Linear(16, 10)

    def forward(self, images):
        return self.fc(torch.cat([self.one(images), self.two(images)], dim=1))


def test_a_module_and_the_network_in_it_are_switched_once():
    module = User("mlp")
    module.network = Concatenated()
    make_slimmable(module, CALL, WIDTHS)
    set_width(module, 0.5)
    assert torch.equal(module(IMAGES[:8]), export_width(module, 0.5)(IMAGES[:8]))


@pytest.mark.parametrize(
    "options",
    [{"widths": 0.5}, {"widths": ("a",)}, {"sampled": 1.5}, {"distillation": "a"}, {"temperature": float("nan")},
     {"weight": "a"}, {"statistics": "seperate"}, {"calibration_batches": 1.5}, {"exclude": "fc"}, {"labels": "y"}],
)  # fmt: skip
def test_bad_arguments_are_refused_at_once(options):
    with pytest.raises(CompressionError, match=next(iter(options))):
        SlimmableWidths(**options)


def test_a_fit_without_steps_and_two_of_them_are_refused():
    with pytest.raises(CompressionError, match="nothing to train"):
        slimmed(max_epochs=0)
    with pytest.raises(CompressionError, match="all widths to one of them"):
        slimmed(SlimmableWidths((0.5,), name="other"), max_epochs=1)


def test_what_cannot_work_is_refused():
    with pytest.raises(CompressionError, match="Cut first"):
        slimmed(lc.NeuronPruning(0.3), module=User("mlp"))
    with pytest.raises(CompressionError, match="heads for features of one width"):
        slimmed(EarlyExits(("stages.0",)))
    with pytest.raises(CompressionError, match=r"each in \(0, 1\]"):
        SlimmableWidths((0.5, 1.5))
    with pytest.raises(CompressionError, match="a width below 1"):
        SlimmableWidths((1.0,))
    with pytest.raises(CompressionError, match="none of 0.25"):
        set_width(slimmed(max_epochs=1), 0.3)
    with pytest.raises(CompressionError, match="No units"):
        make_slimmable(nn.Linear(64, 10), CALL, WIDTHS)
    with pytest.raises(CompressionError, match="'lstm': it is excluded"):
        make_slimmable(RowLSTM(), CALL, WIDTHS)


def test_values_in_the_configuration_are_the_defaults_of_the_constructor():
    values, parameters = OmegaConf.load(CONF), inspect.signature(SlimmableWidths).parameters
    assert set(values) - {"_target_", "_convert_"} == set(parameters)
    for name, parameter in parameters.items():
        found = tuple(values[name]) if isinstance(parameter.default, tuple) else values[name]
        assert found == parameter.default, name
    assert isinstance(instantiate(values), SlimmableWidths)
