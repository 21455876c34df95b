"""Blocks passed by at random, switched off, and taken out for good."""

import copy
import inspect
from pathlib import Path

import pytest
import torch
from dynamic.exiting import Deep, Encoder
from hydra.utils import instantiate
from omegaconf import OmegaConf
from support import User, digits, every_epoch, fit, leftovers, same
from torch import nn

import lightning_compress as lc
from lightning_compress.dynamic import StochasticDepth, export_depth, set_depth
from lightning_compress.errors import CompressionError
from lightning_compress.plan import Plan
from lightning_compress.surgery import TracingInput
from lightning_compress.surgery.blocks import find_blocks
from lightning_compress.zoo.resnet import ResidualBlock

IMAGES = digits()[0]
CONF = Path(lc.__file__).parents[1] / "conf" / "callbacks" / "stochastic_depth.yaml"
CALL = TracingInput("", (IMAGES[:8],), {})
LAYERS = [f"encoder.layers.{number}" for number in range(1, 4)]  # the Encoder itself looks into the first


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.Sequential(
            *(ResidualBlock(8, 8) for _ in range(3)), ResidualBlock(8, 16, 2), ResidualBlock(16, 16)
        )
        self.fc = nn.Linear(16, 10)

    def forward(self, images):
        return self.fc(self.blocks(torch.relu(self.stem(images.view(-1, 1, 8, 8)))).mean(dim=(2, 3)))


class DepthUser(User):
    def __init__(self, network: str = "residual") -> None:
        super().__init__("mlp", "adam", False)
        self.network = {"residual": Residual, "encoder": Encoder}[network]()


def post_norm() -> nn.Module:
    layers = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(2)]
    return nn.Sequential(nn.Unflatten(1, (8, 8)), *layers, nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (Residual, ["blocks.0", "blocks.1", "blocks.2", "blocks.4"]),
        (Encoder, LAYERS),
        (post_norm, ["1", "2"]),
        (Deep, []),
        (lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), []),
    ],
    ids=["residual", "encoder", "post-norm", "plain convolutions", "square linear"],
)
def test_residual_blocks_are_found_and_nothing_else(build, names):
    torch.manual_seed(0)
    network = build()
    before = copy.deepcopy(network.state_dict())
    assert find_blocks(network, CALL) == names
    assert same(dict(before), dict(network.state_dict()))


@pytest.mark.parametrize("build", [Residual, Encoder])
def test_the_exported_network_equals_the_switched_one_and_is_smaller(build, tmp_path):
    torch.manual_seed(0)
    network = build().eval()
    whole = network(IMAGES[:20])
    kept = set_depth(network, 2, tracing=CALL)
    switched = network(IMAGES[:20])
    small = export_depth(network, 2)
    assert len(kept) == 2
    assert torch.equal(small(IMAGES[:20]), switched)
    assert not torch.allclose(switched, whole)
    assert lc.measure(small, IMAGES[:1]).macs < lc.measure(network, IMAGES[:1]).macs
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in network.parameters())
    set_depth(network, None)
    assert torch.equal(network(IMAGES[:20]), whole)
    lc.save_compressed(small, tmp_path / "small.lcz")
    loaded = lc.load_compressed(tmp_path / "small.lcz", into=build()).eval()
    assert torch.equal(loaded(IMAGES[:20]), switched)
    assert len(Plan.of(loaded)) == len(Plan.of(small)) > 0


@pytest.mark.parametrize("mode", ["row", "batch"])
@pytest.mark.parametrize("network", ["residual", "encoder"])
def test_the_depth_can_be_switched_after_a_fit(network, mode):
    torch.manual_seed(2)
    module = DepthUser(network)
    callback = StochasticDepth(0.5, mode=mode)
    fit(module, callback, max_epochs=1)
    assert "forward" not in vars(module.network)
    assert set_depth(module, 1) in (["network.blocks.0"], ["network.encoder.layers.1"])


def test_blocks_are_passed_by_as_often_as_they_should_be():
    counts = []

    class Counting(Residual):
        def forward(self, images):
            value = torch.relu(self.stem(images.view(-1, 1, 8, 8)))
            for place, block in enumerate(self.blocks):
                output = block(value)
                if place == 4 and self.training and torch.is_grad_enabled():
                    counts.append((output == value).flatten(1).all(dim=1).double().mean())
                value = output
            return self.fc(value.mean(dim=(2, 3)))

    module = DepthUser()
    module.network = Counting()
    fit(module, StochasticDepth(0.4), max_epochs=4)
    assert float(torch.stack(counts).mean()) == pytest.approx(0.4, abs=0.03)


def test_evaluation_uses_all_blocks():
    module = DepthUser().eval()
    fit(module, StochasticDepth(0.9, linear=False), max_epochs=1)
    module.eval()
    assert torch.equal(module(IMAGES[:9]), module(IMAGES[:9]))


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_resumed_fit_equals_uninterrupted_fit(tmp_path, mode):
    torch.manual_seed(1)
    whole = DepthUser()
    fit(whole, StochasticDepth(0.5, mode=mode), every_epoch(tmp_path), max_epochs=2)
    torch.manual_seed(9)
    resumed = DepthUser()
    fit(resumed, StochasticDepth(0.5, mode=mode), max_epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert same(dict(whole.state_dict()), dict(resumed.state_dict()))


@pytest.mark.parametrize(
    "others",
    [
        lambda: [lc.WeightPruning(0.5)],
        lambda: [lc.QuantizationAwareTraining(8, 8)],
        lambda: [lc.Distillation(Residual(), fidelity=False)],
    ],
    ids=["pruning", "qat", "distillation"],
)
def test_it_works_beside_the_other_callbacks(others):
    torch.manual_seed(3)
    module = DepthUser()
    fit(module, *others(), StochasticDepth(0.5), max_epochs=1)
    module.eval()
    small = export_depth(module, 2)
    set_depth(module, 2)
    assert torch.equal(small(IMAGES[:9]), module(IMAGES[:9]))
    assert not any("forward" in vars(part) for part in small.modules())


def test_pruned_weights_stay_pruned_where_blocks_are_passed_by():
    module = DepthUser()
    fit(module, lc.WeightPruning(0.6), StochasticDepth(0.5), max_epochs=1)
    weights = [part.weight for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    share = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert share == pytest.approx(0.6, abs=0.01)


def test_nothing_is_left_on_the_module():
    module = DepthUser()
    before = leftovers(module)
    fit(module, StochasticDepth(0.5), max_epochs=1)
    after = leftovers(module)
    assert after[1:] == before[1:]
    assert not any("forward" in vars(part) for part in module.modules())


def test_a_copy_of_a_switched_network_uses_all_blocks():
    network = Residual().eval()
    whole = network(IMAGES[:5])
    set_depth(network, 1, tracing=CALL)
    assert torch.equal(copy.deepcopy(network)(IMAGES[:5]), whole)


def test_what_cannot_work_is_refused():
    with pytest.raises(CompressionError, match="no residual blocks"):
        module = User("mlp")
        fit(module, StochasticDepth(0.5), max_epochs=1)
    with pytest.raises(CompressionError, match="drop=1"):
        StochasticDepth(1.0)
    with pytest.raises(CompressionError, match="between 0 and the 4 blocks"):
        set_depth(Residual(), 5, tracing=CALL)
    with pytest.raises(CompressionError, match="does not run without"):
        find_blocks(Residual(), CALL, ["blocks.3"])
    with pytest.raises(CompressionError, match="no blocks that are known"):
        set_depth(Residual(), 1)
    for depth in (1.5, True, "blocks.0"):
        with pytest.raises(CompressionError, match="how many blocks"):
            set_depth(Residual(), depth, tracing=CALL)
    for options in ({"drop": "a"}, {"blocks": 5}, {"blocks": "a"}):
        with pytest.raises(CompressionError, match=next(iter(options))):
            StochasticDepth(**options)


def test_values_in_the_configuration_are_the_defaults_of_the_constructor():
    values, parameters = OmegaConf.load(CONF), inspect.signature(StochasticDepth).parameters
    assert set(values) - {"_target_", "_convert_"} == set(parameters)
    for name, parameter in parameters.items():
        assert (tuple(values[name]) if name == "blocks" else values[name]) == parameter.default, name
    assert isinstance(instantiate(values), StochasticDepth)
