"""capture finds the call that runs the network; copies, flags and random states are as promised."""

import copy
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from lightning import LightningModule
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery import TracingInput, capture, evaluation_mode, find_groups, private_copy
from lightning_compress.zoo.classifier import Classifier
from lightning_compress.zoo.lenet import LeNet5


class Direct(LightningModule):
    """Never calls its own forward in the training step."""

    def __init__(self):
        super().__init__()
        self.augmentation, self.network, self.loss = nn.Dropout(), LeNet5(), nn.CrossEntropyLoss()

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.loss(self.network(self.augmentation(x)), y)


BATCH = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])


def states():
    return torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()


def same(one, two):
    return torch.equal(one[0], two[0]) and np.array_equal(one[1], two[1]) and one[2] == two[2]


def test_a_step_that_calls_self_gives_a_call_of_the_root():
    module = Classifier("lenet_5")
    tracing = capture(module, lambda duplicate: duplicate.training_step(BATCH, 0))
    assert tracing.module == ""
    assert torch.equal(tracing.args[0], BATCH[0])
    assert tracing.outputs(module)[0].shape == (4, 10)
    assert [group.name for group in find_groups(module, tracing)] == ["network.conv1", "network.conv2", "network.fc1"]


def test_a_step_that_calls_a_submodule_gives_a_call_of_that():
    module = Direct()
    tracing = capture(module, lambda duplicate: duplicate.training_step(BATCH, 0))
    assert tracing.module == "network"
    assert tracing.outputs(module)[0].shape == (4, 10)


def test_the_outermost_call_counts_not_an_inner_one():
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 2)))
    assert capture(net, lambda duplicate: duplicate[0](torch.zeros(1, 3))).module == "0"


def test_keyword_and_nested_arguments_are_recorded():
    @dataclass
    class Options:
        mask: torch.Tensor
        scale: float

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x, *, extra, options):
            return {"scores": self.fc(x["x"]) * extra[1] + options.mask * options.scale}

    net, x = Net(), torch.randn(4, 3, requires_grad=True)
    options = Options(torch.ones(2), 3.0)
    tracing = capture(net, lambda duplicate: duplicate({"x": x}, extra=[None, 2.0], options=options))
    (output,) = tracing.outputs(net)
    assert torch.equal(output, net.fc(x) * 2 + 3)
    assert tracing.args[0]["x"] is not x
    assert not tracing.args[0]["x"].requires_grad
    options.mask.zero_()
    assert tracing.kwargs["options"].mask.tolist() == [1, 1]


def test_capture_aborts_the_call_and_touches_nothing():
    module = Direct()
    module.network.eval()
    seen = []
    module.network.register_forward_pre_hook(lambda *_: seen.append("hook"))
    before, random_states = copy.deepcopy(module.state_dict()), states()

    def call(duplicate):
        assert duplicate is not module
        torch.rand(1), np.random.rand(), random.random()
        duplicate.training_step(BATCH, 0)
        seen.append("after")

    capture(module, call)
    assert not seen
    assert same(random_states, states())
    assert [part.training for part in (module, module.network, module.network.fc1)] == [True, False, False]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert len(module.network._forward_pre_hooks) == 1
    assert all(p.grad is None for p in module.parameters())


def test_capture_survives_a_step_that_catches_exceptions():
    def call(duplicate):
        try:
            duplicate(torch.zeros(1, 3))
        except Exception:
            pytest.fail("the end of the capture was caught")

    assert capture(nn.Linear(3, 2), call).module == ""


def test_arguments_captured_in_inference_mode_can_be_traced():
    net = LeNet5()
    with torch.inference_mode():
        tracing = capture(net, lambda duplicate: duplicate(torch.randn(2, 1, 8, 8)))
    assert not tracing.args[0].is_inference()
    assert len(find_groups(net, tracing)) == 3


def test_a_call_that_runs_no_layer_is_refused_with_the_way_out():
    state = states()
    with pytest.raises(CompressionError, match="example_input_array"):
        capture(nn.Sequential(nn.ReLU()), lambda duplicate: torch.rand(1))
    assert same(state, states())


def test_an_error_of_the_step_is_the_users_and_the_random_states_are_restored():
    net, state = nn.Linear(1, 1), states()
    with pytest.raises(KeyError):
        capture(net, lambda duplicate: {}[torch.rand(1).item()])
    assert same(state, states())


def test_a_private_copy_has_no_hooks_and_shares_nothing():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    net[0].register_forward_hook(lambda *_: pytest.fail("called"))
    net[0].register_full_backward_hook(lambda *_: pytest.fail("called"))
    net.register_state_dict_post_hook(lambda *_: None)
    duplicate = private_copy(net)
    duplicate(torch.ones(1, 2)).sum().backward()
    assert duplicate[0].weight is duplicate[1].weight
    assert duplicate[0].weight.data_ptr() != net[0].weight.data_ptr()
    assert len(net[0]._forward_hooks) == len(net[0]._backward_hooks) == 1
    assert net[0].weight.grad is None


def test_what_cannot_be_copied_is_refused_with_the_way_out():
    net = nn.Linear(2, 2)
    net.bad = net.weight * 2
    with pytest.raises(CompressionError, match=r"cannot be copied.*weight_norm"):
        private_copy(net)


@pytest.mark.parametrize("fails", [False, True])
def test_random_states_are_isolated(fails):
    before = states()
    try:
        with isolated_random_states():
            torch.rand(5), np.random.rand(5), random.random()
            assert not same(before, states())
            if fails:
                raise ValueError
    except ValueError:
        pass
    assert same(before, states())


def test_evaluation_mode_restores_each_flag_and_calls_no_user_code():
    class Loud(nn.Module):
        def train(self, mode=True):
            pytest.fail("train() was called")

    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), Loud())
    net[1].training = False
    with evaluation_mode(net):
        assert not any(part.training for part in net.modules())
    with pytest.raises(ValueError, match="inside"), evaluation_mode(net):
        raise ValueError("inside")
    assert [part.training for part in net.modules()] == [True, True, False, True]


def test_outputs_are_flattened_in_order():
    class Net(nn.Module):
        def forward(self, x):
            return {"a": x, "b": [x + 1, (x + 2, None, "text")]}

    outputs = TracingInput("", (torch.zeros(1),), {}).outputs(Net())
    assert [output.item() for output in outputs] == [0, 1, 2]
