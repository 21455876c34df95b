"""The networks as users meet them: small pictures, training, surgery, files, configurations."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from support import loader, trainer
from torch import nn

import lightning_compress as lc
from lightning_compress.errors import CompressionError
from lightning_compress.surgery import TracingInput, find_groups, merge, verify_edit
from lightning_compress.surgery.ports import is_depthwise
from lightning_compress.zoo import Classifier, Textures, build
from lightning_compress.zoo.blocks import scaled
from lightning_compress.zoo.catalog import STUDENTS

WIDTHS = dict.fromkeys([*STUDENTS, "resnet18", "resnet50", "vgg11", "vgg11_bn"], 0.125)
WIDTHS |= {"xception": 0.05, "vgg11": 0.0625, "vgg11_bn": 0.0625, "resnet50": 0.0625}
CONF = Path(lc.__file__).parents[1] / "conf" / "module"
LENETS = {"lenet_300_100", "lenet_5", "small_resnet"}


def small(name, pixels=32, **options):
    torch.manual_seed(0)
    return build(name, num_classes=5, in_channels=1, width=WIDTHS[name], image_size=pixels, **options)


@pytest.mark.parametrize("name", WIDTHS)
def test_every_parameter_learns_from_small_pictures(name):
    network = small(name)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.bias, 0.5, 0.1)  # a fresh norm passes no gradient to what is constant
    scores = network(torch.randn(8, 1, 32, 32))
    assert scores.shape == (8, 5)
    nn.functional.cross_entropy(scores, torch.arange(8) % 5).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    moved = [bool(parameter.grad.any()) for parameter in network.parameters()]
    assert sum(moved) >= 0.9 * len(moved)


@pytest.mark.parametrize("name", WIDTHS)
def test_copies_and_pickles_compute_the_same(name):
    network, pictures = small(name, 8).eval(), torch.randn(2, 1, 8, 8)
    scores = network(pictures)
    assert scores.shape == (2, 5)
    assert torch.isfinite(scores).all()
    assert scores.std() > 0
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(pictures), scores)


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("width", [0.1, 0.3, 1.0])
def test_shufflenet_v1_has_every_number_of_groups_at_any_width(groups, width):
    network = build("shufflenet_v1", num_classes=5, width=width, groups=groups, image_size=8)
    assert network.eval()(torch.zeros(1, 3, 8, 8)).shape == (1, 5)
    whole, *others = (layer for name, layer in network.named_modules() if name.endswith(".compress"))
    assert whole.groups == 1
    assert {layer.groups for layer in others} == {groups}


@pytest.mark.parametrize("name", WIDTHS)
def test_wider_networks_are_larger(name):
    sizes = []
    for width in (0.25, 0.5, 1.0, 1.3):
        with torch.device("meta"):
            network = build(name, width=width, image_size=32)
        sizes.append(sum(parameter.numel() for parameter in network.parameters()))
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mobilenet_v4", {}, "Did you mean 'mobilenet_v"),
        ("mobilenet_v2", {"width": 0.0}, "width=0.0"),
        ("shufflenet_v1", {"width": -1.0}, "width=-1.0"),
        ("shufflenet_v2", {"width": 0.0}, "width=0.0"),
        ("shufflenet_v1", {"groups": 5}, r"\[1, 2, 3, 4, 8\]"),
        ("resnet18", {"image_size": 7}, "image_size=7 is too small"),
        ("resnet18", {"depth": 7}, "resnet18 cannot be built with"),
        ("vgg11", {"in_channels": -1}, "vgg11 cannot be built with"),
        ("mobilenet_v2", {"num_classes": 0}, "num_classes=0: a whole number"),
        ("squeezenet1_1", {"image_size": 32.5}, "image_size=32.5: a whole number"),
        ("mobilenet_v2", {"width": float("inf")}, "mobilenet_v2 cannot be built with"),
    ],
)
def test_what_cannot_be_built_is_refused(name, options, message):
    with pytest.raises(CompressionError, match=message):
        build(name, **options)


@pytest.mark.parametrize(("channels", "width", "expected"), [(16, 0.35, 8), (24, 0.75, 24), (320, 0.35, 112)])
def test_channels_are_scaled_as_the_authors_of_mobilenet_do(channels, width, expected):
    assert scaled(channels, width) == expected


@pytest.mark.parametrize("name", WIDTHS)
def test_each_can_be_pruned_or_says_by_name_what_cannot(name):
    options = {"groups": 1} if name == "shufflenet_v1" else {}
    network, pictures = small(name, 8, **options).eval(), torch.randn(2, 1, 8, 8)
    tracing = TracingInput("", (pictures,), {})
    groups = find_groups(network, tracing)
    named = {layer for group in groups for layer in group.producers} | groups.skipped.keys()
    for layer, module in network.named_modules():
        assert layer in named or is_depthwise(module) or not isinstance(module, nn.Conv2d | nn.Linear), layer
    assert len(groups) >= 10, groups.skipped
    edit = merge([group.keep(torch.randperm(group.size)[: group.size * 2 // 3 + 1].sort().values) for group in groups])
    verify_edit(network, edit, tracing)
    before = sum(parameter.numel() for parameter in network.parameters())
    edit.apply(network)
    assert sum(parameter.numel() for parameter in network.parameters()) < 0.8 * before
    assert network(pictures).shape == (2, 5)


def test_grouped_convolutions_that_cannot_be_thinned_are_named():
    network = small("shufflenet_v1", 8, groups=3)
    skipped = find_groups(network, TracingInput("", (torch.randn(2, 1, 8, 8),), {})).skipped
    assert skipped.keys() >= {"stages.0.1.compress", "fc"}


def test_neurons_are_pruned_in_mid_fit_and_the_file_comes_back(tmp_path):
    options = {"in_channels": 1, "width": 0.125, "image_size": 8}
    model = Pictures("squeezenet1_1", network_options=options)
    before = lc.measure(model.network, torch.zeros(1, 1, 8, 8)).macs
    pruning = lc.NeuronPruning(0.3, of="macs", max_step=1.0)
    trainer(pruning, max_epochs=2, limit_train_batches=2).fit(model, loader())
    assert lc.measure(model.network, torch.zeros(1, 1, 8, 8)).macs < 0.8 * before
    lc.save_compressed(model, tmp_path / "model.lcz")
    again = lc.load_compressed(tmp_path / "model.lcz", into=Pictures("squeezenet1_1", network_options=options))
    pictures = torch.randn(3, 64)
    assert torch.equal(again.eval()(pictures), model.eval()(pictures))


class Pictures(Classifier):
    """Digits come as vectors here."""

    def forward(self, x):
        return super().forward(x.view(-1, 1, 8, 8))


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_builds_a_network(path):
    module = instantiate(OmegaConf.load(path))
    shape = (1, 8, 8) if path.stem in LENETS else Textures.input_shape
    classes = 10 if path.stem in LENETS else Textures.num_classes
    assert module.eval()(torch.zeros(2, *shape)).shape == (2, classes)
