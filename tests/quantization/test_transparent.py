"""Weights seen through a transform in a forward, and nowhere else; the module stays the user's own."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lightning_compress.errors import CompressionError
from lightning_compress.plan import Record, ReplaceModule
from lightning_compress.quantization.transparent import TransparentWeights, make_plain_
from lightning_compress.surgery import private_copy


class Quarters(torch.autograd.Function):
    @staticmethod
    def forward(context, weight):
        return (weight * 4).round() / 4

    @staticmethod
    def backward(context, gradient):
        return gradient


quarters = Quarters.apply


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(torch.relu(self.encoder(x))) + self.encoder(x)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3, bias=False)

    def forward(self, x):
        return nn.functional.linear(x, self.layer.weight)


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


NETWORKS = {
    "perceptron": (lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), (5, 6)),
    "root is the layer": (lambda: nn.Linear(6, 2), (5, 6)),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(2, 1, 3)), (2, 1, 6, 6)),
    "attention": (SelfAttention, (2, 3, 8)),
    "transformer": (encoder, (2, 3, 8)),
    "lstm": (lambda: nn.LSTM(4, 5, 2), (3, 2, 4)),
    "gru": (lambda: nn.Sequential(nn.GRU(4, 5)), (3, 2, 4)),
    "cell": (lambda: nn.LSTMCell(4, 5), (2, 4)),
    "tied": (Tied, (5, 6)),
    "functional": (Functional, (5, 6)),
}


def output(result):
    return result if isinstance(result, torch.Tensor) else output(result[0])


@pytest.fixture(params=NETWORKS)
def case(request):
    torch.manual_seed(0)
    build, shape = NETWORKS[request.param]
    net = build()
    return net, torch.randn(shape), [name for name, p in net.named_parameters() if p.dim() > 1]


def rounded_copy(net, names):
    reference = copy.deepcopy(net)
    with torch.no_grad():
        for name in names:
            parameter = reference.get_parameter(name)
            parameter.copy_(quarters(parameter))
    return reference


def look(net):
    return [
        (type(part), set(vars(part)), len(part._forward_hooks), len(part._forward_pre_hooks)) for part in net.modules()
    ]


@pytest.mark.parametrize("training", [True, False])
def test_a_forward_computes_with_transformed_weights_and_gradients_reach_the_raw_ones(case, training):
    net, inputs, names = case
    net.train(training)
    reference = rounded_copy(net, names)
    weights = TransparentWeights(net)
    for name in names:
        weights.attach(name, quarters)
    result, expected = output(net(inputs)), output(reference(inputs))
    assert torch.equal(result, expected)
    result.square().sum().backward()
    expected.square().sum().backward()
    for one, two in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


def test_the_attention_fast_path_is_off_in_the_forward_and_back_afterwards():
    net = encoder().eval()
    seen = []
    net.layers[0].linear1.register_forward_pre_hook(lambda *_: seen.append(torch.backends.mha.get_fastpath_enabled()))
    weights = TransparentWeights(net)
    weights.attach("layers.0.linear1.weight", quarters)
    with torch.no_grad():
        net(torch.randn(2, 3, 8))
    assert seen == [False]
    assert torch.backends.mha.get_fastpath_enabled()


def test_outside_of_a_forward_everything_is_the_users_own(case):
    net, inputs, names = case
    keys, parameters = list(net.state_dict()), list(net.parameters())
    before = output(net(inputs))
    weights = TransparentWeights(net)
    for name in names:
        weights.attach(name, quarters)
    net(inputs)
    assert list(net.state_dict()) == keys
    assert all(one is two for one, two in zip(net.parameters(), parameters, strict=True))
    assert net.get_parameter(names[0]) is parameters[0]
    weights.close()
    assert torch.equal(output(net(inputs)), before)


def test_nothing_is_left_after_close(case):
    net, _, names = case
    before = look(net)
    weights = TransparentWeights(net)
    for name in names:
        weights.attach(name, quarters)
    assert look(net) != before
    weights.close()
    weights.close()
    assert look(net) == before


def test_a_deepcopy_sees_transforms_of_its_own_and_a_pickle_none(case):
    net, inputs, names = case
    plain = output(net(inputs))
    weights = TransparentWeights(net)
    for name in names:
        weights.attach(name, quarters)
    expected = output(net(inputs))
    with weights.seen():
        duplicate = copy.deepcopy(net)  # amid a forward
    assert torch.equal(output(duplicate(inputs)), expected)
    with torch.no_grad():
        for parameter in duplicate.parameters():
            parameter.zero_()
    assert torch.equal(output(net(inputs)), expected)
    pickled = pickle.loads(pickle.dumps(net))
    assert torch.equal(output(pickled(inputs)), plain)
    assert look(pickled) == look(plain_copy(net))
    assert torch.equal(output(private_copy(net)(inputs)), plain)
    make_plain_(duplicate)
    weights.close()
    assert look(duplicate) == look(net)


def plain_copy(net):
    duplicate = copy.deepcopy(net)
    make_plain_(duplicate)
    return duplicate


@pytest.mark.parametrize("first", ["prune", "attach"])
def test_torch_prune_works_in_either_order(first):
    net = nn.Sequential(nn.Linear(6, 4))
    weights = TransparentWeights(net)
    steps = [lambda: prune.l1_unstructured(net[0], "weight", 0.5), lambda: weights.attach("0.weight", quarters)]
    for step in steps if first == "prune" else reversed(steps):
        step()
    net(torch.randn(2, 6)).sum().backward()
    assert net[0].weight_orig.grad is not None
    with weights.seen():
        assert int((net[0].weight == 0).sum()) >= 12
        assert torch.equal(net[0].weight, quarters(net[0].weight_orig * net[0].weight_mask))
    prune.remove(net[0], "weight")
    assert isinstance(net[0].weight, nn.Parameter)
    weights.close()
    assert type(net[0]) is nn.Linear


def test_an_empty_weight_is_an_attribute_error():
    net = nn.Sequential(nn.Linear(6, 4))
    weights = TransparentWeights(net)
    weights.attach("0.weight", quarters)
    parameter = net[0]._parameters.pop("weight")
    assert not hasattr(net[0], "weight")
    net[0].weight = parameter
    assert net[0].weight is parameter


def test_an_attribute_error_inside_a_transform_is_not_swallowed():
    net = nn.Sequential(nn.Linear(6, 4))
    weights = TransparentWeights(net)
    weights.attach("0.weight", lambda weight: weight.no_such_thing)
    with pytest.raises(RuntimeError, match="no_such_thing"):
        net(torch.randn(1, 6))
    assert net[0].weight.shape == (4, 6), "the gate has closed behind the error"


def test_a_replaced_layer_is_let_go_and_taken_up_again_when_it_comes_back():
    net = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    first, second = net[0], net[1]
    weights = TransparentWeights(net)
    for name in ("0.weight", "1.weight"):
        weights.attach(name, quarters)
    record = Record.of(net)
    record.followers.append(weights)
    factored = {
        "type": "Sequential",
        "children": [
            ["0", {"type": "Linear", "arguments": {"in_features": 6, "out_features": 2, "bias": False}}],
            ["1", {"type": "Linear", "arguments": {"in_features": 2, "out_features": 4}}],
        ],
    }
    record.apply(ReplaceModule("0", factored))
    assert weights.names == ["1.weight"]
    assert type(first) is nn.Linear
    assert type(second) is not nn.Linear
    weights.close()


def test_two_transforms_of_one_parameter_are_refused_by_both_names():
    net = nn.Sequential(nn.Linear(6, 4))
    TransparentWeights(net, "One").attach("0.weight", quarters)
    with pytest.raises(CompressionError, match="Two and One"):
        TransparentWeights(net, "Two").attach("0.weight", quarters)


def test_unknown_and_computed_parameters_are_refused():
    net = nn.Sequential(nn.Linear(6, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
    weights = TransparentWeights(net)
    with pytest.raises(CompressionError, match="Did you mean '0.weight'"):
        weights.attach("0.weigth", quarters)
    with pytest.raises(CompressionError, match="parametrize"):
        weights.attach("1.weight", quarters)
    assert type(net[0]) is nn.Linear


def test_chosen_values_are_handed_out_while_all_others_are_still_seen_through():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    weights = TransparentWeights(net)
    for name in ("0.weight", "1.weight"):
        weights.attach(name, lambda weight: 2 * weight)
    one = torch.eye(2)
    with torch.no_grad():
        net[0].weight.copy_(one)
        net[1].weight.copy_(one)
    with weights.values({"0.weight", "elsewhere"}) as values:
        assert set(values) == {"0.weight"}
        assert torch.equal(values["0.weight"], 2 * one)
        assert torch.equal(net(one), 2 * one)
        values["0.weight"].sum().backward()
    assert torch.equal(net[0].weight.grad, torch.full((2, 2), 2.0))
    assert torch.equal(net(one), 4 * one)
    assert torch.equal(net[0].weight, one)
