"""Groups of real architectures: half of every group is cut, and the cut network is compared with the masked one."""

import copy
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_compress.errors import CompressionError
from lightning_compress.plan import KeepIndices, named_tensors
from lightning_compress.surgery import TracingInput, find_groups, merge, verify_edit
from lightning_compress.zoo.lenet import LeNet5, LeNet300
from lightning_compress.zoo.resnet import SmallResNet


class DenseNet(nn.Module):
    """Each layer reads all maps before it, through BatchNorm over the concatenation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * depth) for depth in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * depth, 4, 3, padding=1, bias=False) for depth in range(3))
        self.fc = nn.Linear(18, 5)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(functional.relu(norm(x)))], 1)
        return self.fc(functional.relu(self.norms[-1](x)).mean((2, 3)))


class Fire(nn.Module):
    def __init__(self, inputs, squeezed, expanded):
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.one = nn.Conv2d(squeezed, expanded, 1)
        self.three = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x):
        x = functional.relu(self.squeeze(x))
        return functional.relu(torch.cat([self.one(x), self.three(x)], 1))


class SqueezeNet(nn.Module):
    """Two Fire modules, the second with a bypass, and a convolution as the classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.fire1, self.fire2 = Fire(8, 4, 6), Fire(12, 4, 6)
        self.classifier = nn.Conv2d(12, 5, 1)

    def forward(self, x):
        x = self.fire1(functional.relu(self.stem(x)))
        return self.classifier(x + self.fire2(x)).mean((2, 3))


def separable(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU6(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


def mobilenet():
    stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(20, 5))
    return nn.Sequential(stem, separable(8, 12), separable(12, 20), head)


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, depthwise, project, add."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3)
        self.expand = nn.Conv2d(6, 18, 1)
        self.depthwise = nn.Conv2d(18, 18, 3, padding=1, groups=18)
        self.project = nn.Conv2d(18, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.project(functional.relu6(self.depthwise(functional.relu6(self.expand(x)))))
        return self.fc(x.mean((2, 3)))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.down = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(6, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU())
        self.up = nn.ConvTranspose2d(10, 7, 2, stride=2)
        self.out = nn.Sequential(nn.Conv2d(13, 6, 3, padding=1), nn.PReLU(6), nn.Conv2d(6, 2, 1))

    def forward(self, x):
        high = self.enter(x)
        return self.out(torch.cat([self.up(self.down(high)), high], 1))


class TiedLinears(nn.Module):
    """Two layers of one weight, with biases of their own."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(6, 8)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.leave = nn.Linear(8, 3)

    def forward(self, x):
        return self.leave(torch.relu(self.two(torch.relu(self.one(torch.relu(self.enter(x)))))))


class TiedEmbedding(nn.Module):
    """The output layer is the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)
        self.decoder = nn.Linear(8, 11, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, words):
        x = self.embedding(words).mean(1)
        return self.decoder(x + self.narrow(torch.relu(self.wide(x))))


class SharedTwice(nn.Module):
    """One convolution called twice: its inputs are its outputs."""

    def __init__(self):
        super().__init__()
        self.enter, self.again, self.leave = nn.Conv2d(1, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.enter(x)
        return self.leave(torch.tanh(self.again(torch.tanh(self.again(x)))))


class ViewResNet(nn.Module):
    """As old zoos wrote them: ``x.view`` before the classifier, the width hard-coded or not."""

    def __init__(self, hard_coded):
        super().__init__()
        self.hard_coded = hard_coded
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv1, self.conv2 = nn.Conv2d(16, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1)
        self.fc = nn.Linear(64, 5)

    def forward(self, x):
        x = functional.relu(self.norm(self.stem(x)))
        x = functional.relu(x + self.conv2(functional.relu(self.conv1(x))))
        x = functional.adaptive_avg_pool2d(x, 2)
        return self.fc(x.view(-1, 64) if self.hard_coded else x.view(x.size(0), -1))


def conv1d():
    return nn.Sequential(nn.Conv1d(2, 6, 3), nn.InstanceNorm1d(6), nn.Sigmoid(), nn.Flatten(), nn.Linear(36, 4))


def conv3d():
    layers = [nn.Conv3d(1, 4, 3), nn.GroupNorm(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(32, 6), nn.PReLU()]
    return nn.Sequential(*layers, nn.Linear(6, 2))


def mlp(activation=nn.ReLU):
    layers = [nn.Linear(6, 12), activation(), nn.BatchNorm1d(12), nn.Linear(12, 9), activation(), nn.Linear(9, 3)]
    return nn.Sequential(*layers)


PICTURES = (4, 1, 8, 8)
NETWORKS = {
    "lenet_5": (LeNet5, PICTURES, ["conv1", "conv2", "fc1"]),
    "lenet_300": (LeNet300, PICTURES, ["fc1", "fc2"]),
    "resnet": (
        SmallResNet,
        PICTURES,
        ["stem", "blocks.0.conv1", "blocks.1.conv1", "blocks.1.conv2", "blocks.2.conv1", "blocks.2.conv2"],
    ),
    "densenet": (DenseNet, PICTURES, ["stem", "convs.0", "convs.1", "convs.2"]),
    "squeezenet": (SqueezeNet, PICTURES, ["stem", "fire1.squeeze", "fire1.one", "fire1.three", "fire2.squeeze"]),
    "mobilenet": (mobilenet, PICTURES, ["0.0", "1.3", "2.3"]),
    "inverted_residual": (InvertedResidual, PICTURES, ["stem", "expand"]),
    "unet": (UNet, PICTURES, ["enter.0", "down.1", "up", "out.0"]),
    "view": (lambda: ViewResNet(False), PICTURES, ["stem", "conv1"]),
    "conv1d": (conv1d, (4, 2, 8), ["0"]),
    "conv3d": (conv3d, (2, 1, 4, 4, 4), ["0", "4"]),
    "mlp_relu": (mlp, (5, 6), ["0", "3"]),
    "mlp_sigmoid": (lambda: mlp(nn.Sigmoid), (5, 6), ["0", "3"]),
    "mlp_tanh": (lambda: mlp(nn.Tanh), (5, 6), ["0", "3"]),
    "tied_linears": (TiedLinears, (5, 6), ["enter"]),
    "shared_twice": (SharedTwice, PICTURES, ["enter"]),
}


def build(name):
    torch.manual_seed(0)
    make, shape, expected = NETWORKS[name]
    network = make()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # as after training, one gamma negative
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, -1, 2)
            nn.init.normal_(module.bias)
    return network, TracingInput("", (torch.randn(shape),), {}), expected


def half(groups):
    """A random half of every group, in one edit."""
    generator = torch.Generator().manual_seed(1)
    picks = [torch.randperm(group.size, generator=generator)[: (group.size + 1) // 2].sort().values for group in groups]
    return merge([group.keep(pick) for group, pick in zip(groups, picks, strict=True)])


def masked_and_cut(network, edit, tracing):
    """Written apart from the package: outputs of the masked and of the cut network, relative difference."""
    masked, cut = copy.deepcopy(network).eval(), copy.deepcopy(network).eval()
    tensors = named_tensors(masked)
    with torch.no_grad():
        for part in edit.slices:
            for index in set(range(part.size)) - set(part.kept.tolist()):
                tensors[part.tensor].select(part.dim, index).zero_()
        edit.apply(cut)
        expected, got = masked(*tracing.args), cut(*tracing.args)
    assert got.shape == expected.shape
    return float((expected - got).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_every_group_can_be_cut_exactly(name):
    network, tracing, expected = build(name)
    groups = find_groups(network, tracing)
    assert [group.name for group in groups] == expected, groups.skipped
    edit = half(groups)
    verify_edit(network, edit, tracing)
    assert masked_and_cut(network, edit, tracing) <= 1e-5
    cut = copy.deepcopy(network)
    edit.apply(cut)
    assert sum(p.numel() for p in cut.parameters()) < 0.75 * sum(p.numel() for p in network.parameters())
    loss = cut(*tracing.args).square().sum()
    loss.backward()  # it trains on


@pytest.mark.parametrize("name", NETWORKS)
def test_attributes_say_the_sizes_of_the_tensors(name):
    network, tracing, _ = build(name)
    half(find_groups(network, tracing)).apply(network)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape
        if isinstance(module, nn.modules.conv._ConvNd):
            widths = module.weight.shape[:2] if not module.transposed else module.weight.shape[:2][::-1]
            assert (module.out_channels, module.in_channels // module.groups) == tuple(widths)
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_features == module.weight.numel() == module.running_var.numel()
        if isinstance(module, nn.PReLU):
            assert module.num_parameters == module.weight.numel()


@pytest.mark.parametrize("name", ["resnet", "densenet", "unet"])
def test_groups_are_the_same_each_time(name):
    network, tracing, _ = build(name)
    first, second = (find_groups(module, tracing) for module in (network, copy.deepcopy(network)))
    assert first.skipped == second.skipped
    for one, two in zip(first, second, strict=True):
        assert (one.name, one.producers, one.consumers) == (two.name, two.producers, two.consumers)
        for a, b in zip(one.coupled, two.coupled, strict=True):
            assert (a.tensor, a.dim) == (b.tensor, b.dim)
            assert torch.equal(a.units, b.units)


def test_a_cut_network_has_groups_again():
    network, tracing, expected = build("resnet")
    half(find_groups(network, tracing)).apply(network)
    groups = find_groups(network, tracing)
    assert [group.name for group in groups] == expected
    edit = half(groups)
    verify_edit(network, edit, tracing)
    assert masked_and_cut(network, edit, tracing) <= 1e-5


def test_flattened_units_are_several_features():
    network, tracing, _ = build("lenet_5")
    group = find_groups(network, tracing).named("conv2")
    units = next(part.units for part in group.coupled if part.tensor == "fc1.weight")
    assert units.tolist() == [unit for unit in range(50) for _ in range(4)]


def test_behind_a_concatenation_foreign_channels_belong_to_no_unit():
    network, tracing, _ = build("unet")
    groups = find_groups(network, tracing)
    reader = {
        (name, part.tensor, part.dim): part.units.tolist()
        for name in ("up", "enter.0")
        for part in groups.named(name).coupled
    }
    assert reader["up", "out.0.weight", 1] == [*range(7), *[-1] * 6]
    assert reader["enter.0", "out.0.weight", 1] == [*[-1] * 7, *range(6)]


def test_residual_sums_have_several_producers_and_consumers():
    network, tracing, _ = build("resnet")
    group = find_groups(network, tracing).named("blocks.1.shortcut.0")
    assert group.producers == ("blocks.1.conv2", "blocks.1.shortcut.0")
    assert group.consumers == ("blocks.2.conv1", "blocks.2.shortcut.0")


def test_tied_layers_shrink_together():
    network, tracing, _ = build("tied_linears")
    (group,) = find_groups(network, tracing)
    assert group.producers == ("enter", "one", "two")
    network.eval()
    group.keep(torch.arange(3)).apply(network)
    assert network.one.weight is network.two.weight
    assert network(*tracing.args).shape == (5, 3)


def test_a_tied_embedding_shrinks_with_its_decoder():
    torch.manual_seed(0)
    network = TiedEmbedding()
    tracing = TracingInput("", (torch.randint(11, (4, 5)),), {})
    groups = find_groups(network, tracing)
    assert [group.name for group in groups] == ["wide", "narrow"], groups.skipped
    edit = half(groups)
    assert masked_and_cut(network, edit, tracing) <= 1e-5
    edit.apply(network)
    assert network.decoder.weight is network.embedding.weight


def test_layers_of_the_output_are_skipped_with_the_reason():
    network, tracing, _ = build("squeezenet")
    assert "outputs" in find_groups(network, tracing).skipped["classifier"]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        features = self.body(x)
        return {"features": features, "scores": [self.head(torch.relu(features))]}


def test_every_one_of_several_outputs_is_kept():
    groups = find_groups(Two(), TracingInput("", (torch.randn(3, 4),), {}))
    assert len(groups) == 0
    assert set(groups.skipped) == {"body", "head"}


def test_hard_coded_shapes_are_refused_and_the_rest_is_found():
    torch.manual_seed(0)
    network = ViewResNet(True)
    groups = find_groups(network, TracingInput("", (torch.randn(PICTURES),), {}))
    assert [group.name for group in groups] == ["conv1"]
    assert "exclude" in groups.skipped["stem"]
    with pytest.raises(CompressionError, match="does not run"):
        groups.named("stem")


class Gated(nn.Module):
    """Softmax over the units: zero is not neutral."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.two(self.one(x).softmax(-1))


class Hidden(nn.Module):
    """An operation of its own between two layers, which nothing is known of."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.two(torch.linalg.matrix_exp(self.one(x)[:, :, None].expand(-1, -1, 8))[:, :, 0])


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Bilinear(8, 8, 2)

    def forward(self, x):
        x = self.one(x)
        return self.two(x, x)


def between_convolutions(middle):
    return nn.Sequential(nn.Conv2d(1, 8, 1), middle, nn.Conv2d(8, 2, 1))


REFUSED = {
    "unknown_operation": (Hidden, (4, 6), "one", "linalg_matrix_exp"),
    "unknown_layer": (Bilinear, (4, 6), "one", "no rule says how a Bilinear shrinks"),
    "group_norm": (lambda: between_convolutions(nn.GroupNorm(1, 8)), PICTURES, "0", "normalisation"),
    "layer_norm": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2)),
        (4, 6),
        "0",
        "normalisation",
    ),
    "softmax": (Gated, (4, 6), "one", "setting those neurons to zero"),
    "output": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), (2, 3, 4, 4), "0", "outputs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_right_is_skipped_with_the_reason(name):
    torch.manual_seed(0)
    make, shape, layer, reason = REFUSED[name]
    groups = find_groups(make(), TracingInput("", (torch.randn(shape),), {}))
    assert layer in groups.skipped
    assert reason in groups.skipped[layer]
    with pytest.raises(CompressionError, match=f"No units of '{layer}'"):
        groups.named(layer)


def test_excluded_layers_stay_and_so_do_those_they_share_units_with():
    network, tracing, expected = build("resnet")
    groups = find_groups(network, tracing, exclude=("blocks.0",))
    assert [group.name for group in groups] == expected[2:]
    assert groups.skipped["blocks.0.conv1"] == "it is excluded"
    assert "shares units with 'blocks.0.conv2'" in groups.skipped["stem"]


def test_an_unknown_excluded_name_is_refused_with_a_hint():
    network, tracing, _ = build("lenet_5")
    with pytest.raises(CompressionError, match="Did you mean 'conv1'"):
        find_groups(network, tracing, exclude=("conv11",))
    with pytest.raises(CompressionError, match="one name"):
        find_groups(network, tracing, exclude="conv1")


@pytest.mark.parametrize("units", [[], [3, 1], [1, 1], [0, 20], [-1, 2]])
def test_units_to_keep_that_make_no_sense_are_refused(units):
    network, tracing, _ = build("lenet_5")
    with pytest.raises(CompressionError, match="'conv1'"):
        find_groups(network, tracing)[0].keep(torch.tensor(units, dtype=torch.int64))


def test_merging_two_edits_of_one_group_is_refused():
    network, tracing, _ = build("lenet_5")
    group = find_groups(network, tracing)[0]
    with pytest.raises(CompressionError, match="same entries"):
        merge([group.keep(torch.arange(10)), group.keep(torch.arange(12))])
    with pytest.raises(CompressionError, match="no edit"):
        merge([])


def test_merged_edits_do_what_the_edits_do_one_after_another():
    network, tracing, _ = build("densenet")
    one_by_one = copy.deepcopy(network)
    picks = {}
    for name in ("stem", "convs.0", "convs.1", "convs.2"):
        groups = find_groups(one_by_one, tracing)
        picks[name] = torch.tensor([0, 2, 3])
        groups.named(name).keep(picks[name]).apply(one_by_one)
    groups = find_groups(network, tracing)
    merge([groups.named(name).keep(pick) for name, pick in picks.items()]).apply(network)
    for (name, a), (_, b) in zip(network.state_dict().items(), one_by_one.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def state_of(root):
    """All that a read-only function could disturb."""
    tensors = {name: (id(tensor), tensor.clone(), tensor.requires_grad) for name, tensor in named_tensors(root).items()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in root.named_parameters()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in root.modules()]
    return tensors, grads, [m.training for m in root.modules()], hooks


def assert_same(before, after):
    for name, (identity, tensor, wants) in before[0].items():
        assert (identity, wants) == (after[0][name][0], after[0][name][2])
        assert torch.equal(tensor, after[0][name][1])
    for name, grad in before[1].items():
        assert (grad is None) == (after[1][name] is None)
        assert grad is None or torch.equal(grad, after[1][name])
    assert before[2:] == after[2:]


class Noisy(SmallResNet):
    """Draws from all random states, counts its calls, and fails when told to."""

    calls = 0
    fail = False

    def forward(self, x):
        Noisy.calls += 1
        torch.rand(3), np.random.rand(3), random.random()
        if Noisy.fail:
            raise ValueError("told to")
        return super().forward(x)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("function", ["find_groups", "verify_edit"])
def test_the_module_and_the_random_states_stay_as_they_were(function, fails, monkeypatch):
    torch.manual_seed(0)
    network = Noisy(channels=(4, 6))
    network.train()
    network.blocks[0].bn1.eval()
    network.stem.weight.requires_grad_(False)
    tracing = TracingInput("", (torch.randn(2, 1, 8, 8),), {})
    network(*tracing.args).sum().backward()
    edit = half(find_groups(network, tracing))
    called = []
    network.bn.register_forward_hook(lambda *_: called.append(1))
    before = state_of(network)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    monkeypatch.setattr(Noisy, "fail", fails)
    with pytest.raises(CompressionError, match="told to") if fails else nullcontext():
        find_groups(network, tracing) if function == "find_groups" else verify_edit(network, edit, tracing)
    assert_same(before, state_of(network))
    assert not called
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])
    assert states[2] == random.getstate()


def test_groups_are_found_inside_no_grad_and_inference_mode():
    network, tracing, expected = build("lenet_5")
    with torch.inference_mode():
        assert [group.name for group in find_groups(network, tracing)] == expected
    with torch.no_grad():
        assert [group.name for group in find_groups(network, tracing)] == expected


def test_names_are_relative_to_the_root_where_a_submodule_is_called():
    root = nn.ModuleDict({"network": LeNet5(), "unused": nn.Linear(2, 2)})
    groups = find_groups(root, TracingInput("network", (torch.randn(PICTURES),), {}))
    assert [group.name for group in groups] == ["network.conv1", "network.conv2", "network.fc1"]
    assert "does not run it" in groups.skipped["unused"]
    verify_edit(root, half(groups), TracingInput("network", (torch.randn(PICTURES),), {}))


def test_half_precision_and_frozen_networks_are_traced_in_single_precision():
    network, tracing, expected = build("lenet_5")
    network = network.bfloat16().requires_grad_(False)
    groups = find_groups(network, tracing.map(lambda tensor: tensor.bfloat16()))
    assert [group.name for group in groups] == expected
    assert isinstance(half(groups), KeepIndices)
    assert next(network.parameters()).dtype == torch.bfloat16
