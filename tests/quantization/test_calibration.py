"""Quantization after training, and the best bits for each layer."""

import copy
from itertools import product

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from rich.console import Console
from support import User, digits, every_epoch, fit, same
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.plan import Record
from lightning_compress.quantization import (
    BitBudget,
    QuantizationAwareTraining,
    allocate_bits,
    calibrate,
    sensitivity,
)
from lightning_compress.quantization.allocation_log import log_allocation
from lightning_compress.quantization.equalization import equalize_
from lightning_compress.quantization.grid import Grid
from lightning_compress.quantization.rounding import adaround, gptq, nearest, output_error
from lightning_compress.quantization.sensitivity import Sensitivity
from lightning_compress.registry import names
from lightning_compress.surgery import fold_batchnorm_


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    module = User("conv")
    fit(module, max_epochs=6)
    return module.eval()


def batches():
    return [(digits()[0][start : start + 100],) for start in (0, 100)]


def error(module, reference):
    images = digits()[0][1000:1300]
    with torch.no_grad():
        return (module(images) - reference(images)).square().mean().item()


def test_more_bits_change_less(trained):
    errors = []
    for bits in (2, 4, 8):
        module = copy.deepcopy(trained)
        calibrate(module, batches(), bits, 8, edge_bits=None)
        errors.append(error(module, trained))
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


@pytest.mark.parametrize("options", [{"rounding": "gptq"}, {"rounding": "adaround"}, {"correct_bias": True}], ids=str)
def test_care_in_rounding_helps(trained, options):
    errors = []
    for given in ({}, options):
        module = copy.deepcopy(trained)
        calibrate(module, batches(), 3, None, edge_bits=None, **given)
        errors.append(error(module, trained))
        assert module.network.branch.weight[0].unique().numel() <= 7
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("rounding", [gptq, adaround])
def test_no_row_comes_out_worse_than_nearest_and_zeros_stay(rounding):
    torch.manual_seed(0)
    weight, inputs = torch.randn(6, 12), torch.randn(50, 12) @ torch.randn(12, 12)
    weight[weight.abs() < 0.2] = 0
    moments, scale, grid = inputs.T @ inputs / 50, weight.abs().amax(1, keepdim=True) / 3, Grid(3)
    plain, careful = nearest(weight, scale, grid), rounding(weight, moments, scale, grid)
    errors = [output_error(one - weight, moments) for one in (careful, plain)]
    assert bool((errors[0] <= errors[1] + 1e-9).all())
    assert errors[0].sum() < 0.8 * errors[1].sum()
    assert not careful[weight == 0].any()
    assert torch.allclose(careful / scale, (careful / scale).round(), atol=1e-4)


def test_equalisation_changes_ranges_and_no_output():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).eval()
    fold_batchnorm_(net)
    with torch.no_grad():
        net[0].weight *= torch.logspace(-2, 2, 8).view(-1, 1, 1, 1)
    images = torch.randn(2, 1, 8, 8)
    before, ranges = net(images), net[0].weight.abs().amax((1, 2, 3))
    assert equalize_(net, lambda copied: copied(images)) == [("0", "3")]
    after = net[0].weight.abs().amax((1, 2, 3))
    assert torch.allclose(net(images), before, atol=1e-4)
    assert after.max() / after.min() < 0.1 * ranges.max() / ranges.min()


def test_a_residual_read_elsewhere_is_not_equalised(trained):
    images = digits()[0][:4]
    assert equalize_(copy.deepcopy(trained), lambda copied: copied(images)) == []


def test_quantizers_are_in_force_until_detached(trained):
    module = copy.deepcopy(trained)
    quantization = calibrate(module, batches(), None, 2, edge_bits=None)
    assert error(module, trained) > 0
    quantization.detach()
    assert error(module, trained) == 0
    assert [type(part) for part in module.modules()] == [type(part) for part in trained.modules()]


@pytest.mark.parametrize("observer", names("lightning_compress.quantization.observers"))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_overflow_later_are_refused(trained, observer, value):
    """The batches are numbers; what the network makes of the second is not."""
    module = copy.deepcopy(trained)
    factors = iter([1.0, 1.0, value])  # of the dataflow's run and of two batches
    module.network.dropout.forward = lambda features: features * next(factors)
    with pytest.raises(CompressionError, match=r"network\.head:input.*not finite"):
        calibrate(module, batches(), observer=observer)
    assert torch.equal(module.network.head.weight, trained.network.head.weight)


@pytest.mark.parametrize("rounding", ["gptq", "adaround"])
def test_care_in_rounding_works_in_groups_too(trained, rounding):
    errors = []
    for given in ("nearest", rounding):
        module = copy.deepcopy(trained)
        calibrate(module, batches(), 3, None, edge_bits=None, rounding=given, granularity="group", group_size=8,
                  exclude=["network.stem"])  # fmt: skip
        errors.append(error(module, trained))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([], {}, "no data"),
        ([torch.full((2, 64), float("nan"))], {}, "not finite"),
        ([torch.full((2, 64), float("inf"))], {}, "not finite"),
        ([torch.zeros(2, 64)], {"weight_bits": 1}, "from 2 to 8"),
        ([torch.zeros(2, 64)], {"rounding": "up"}, "rounding='up'"),
        ([torch.zeros(2, 64)], {"scale": "lsq"}, "observes"),
        ([torch.zeros(2, 64)], {"targets": ["nothing"]}, "nothing"),
        ([torch.zeros(2, 64), torch.full((2, 64), float("inf"))], {"equalize": True}, "Batch 1"),
        ([torch.zeros(0, 64)], {}, "no data"),
        (torch.zeros(2, 64), {}, "is a Tensor"),
        (None, {}, "is a NoneType"),
        ([torch.zeros(2, 64)], {"weight_bits": {0: 8, 0.5: 4}}, "in mid-fit"),
        ([torch.zeros(2, 64)], {"granularty": "tensor"}, "Did you mean 'granularity'"),
        ([torch.zeros(2, 64)], {"rounding": None}, "rounding=None"),
    ],
)
def test_bad_input_is_refused_and_the_module_left_as_it_was(trained, data, options, message):
    module = copy.deepcopy(trained)
    with pytest.raises(CompressionError, match=message):
        calibrate(module, data, **options)
    assert error(module, trained) == 0
    assert not any(part._forward_pre_hooks for part in module.modules())


# -- mixed precision --------------------------------------------------------------------------------------------------


def test_sensitivity_leaves_the_module_as_it_was_and_falls_with_the_bits(trained):
    module = copy.deepcopy(trained)
    found = sensitivity(module, batches(), bits=(2, 4, 8))
    assert error(module, trained) == 0
    assert set(found.costs) == {"network.stem", "network.branch", "network.head"}
    for costs in found.costs.values():
        assert costs[2] > costs[4] > costs[8]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("mean_bits", [2.5, 3.7, 6.0])
def test_the_allocation_is_the_best_of_all(seed, mean_bits):
    generator = torch.Generator().manual_seed(seed)
    levels, sizes = (2, 3, 4, 8), {f"layer{n}": int(torch.randint(5, 500, (), generator=generator)) for n in range(5)}
    costs = {}
    for name in sizes:
        falling = torch.rand(4, generator=generator).sort(descending=True).values.tolist()
        costs[name] = dict(zip(levels, falling, strict=True))
    found = allocate_bits(Sensitivity(costs, sizes), mean_bits=mean_bits)
    total = sum(sizes.values())
    best = min(
        sum(costs[name][bits] for name, bits in zip(sizes, choice, strict=True))
        for choice in product(levels, repeat=5)
        if sum(sizes[name] * bits for name, bits in zip(sizes, choice, strict=True)) <= mean_bits * total + 1e-6
    )
    assert found.cost == pytest.approx(best, abs=1e-5)
    assert found.mean_bits <= mean_bits + 1e-6


def test_an_allocation_is_trained_with_shown_and_drawn(trained):
    found = allocate_bits(sensitivity(trained, batches(), bits=(2, 4, 8)), size=900)
    assert found.size <= 900
    console = Console(record=True, width=100)
    console.print(found.table())
    assert "network.head" in console.export_text()
    assert isinstance(found.figure(), Figure)
    quantization = QuantizationAwareTraining(found.bits, None)
    fit(copy.deepcopy(trained).train(), quantization, max_epochs=1)
    assert {n.removesuffix(".weight"): q["bits"] for n, q in quantization.quantizers["weights"].items()} == found.bits


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "one budget"),
        ({"mean_bits": 1}, "below"),
        ({"size": 1}, "below"),
        ({"size": "3kB"}, "'3kB' is no number"),
        ({"mean_bits": float("nan")}, "below"),
    ],
)
def test_budgets_that_cannot_be_met_are_refused(budget, message):
    with pytest.raises(CompressionError, match=message):
        allocate_bits(Sensitivity({"a": {2: 1.0}}, {"a": 100}), **budget)


BUDGET = {"mean_bits": 3.0, "bits": (2, 3, 4, 8), "samples": 80}


def test_a_fit_shares_a_budget_out_when_rounding_begins_and_resumes_with_it(tmp_path):
    """Layers get what they need; the table and the figure go to the logger."""
    L.seed_everything(1, verbose=False)
    logger = TensorBoardLogger(tmp_path)
    one = QuantizationAwareTraining(BitBudget(**BUDGET), None, scale="lsq", start=1)
    module = User("conv")
    whole = fit(module, one, every_epoch(tmp_path), max_epochs=4, logger=logger)
    found = {name: state["bits"] for name, state in one.quantizers["weights"].items()}
    sizes = {name: module.get_parameter(name).numel() for name in found}
    assert len(set(found.values())) > 1
    assert sum(found[name] * sizes[name] for name in found) <= 3 * sum(sizes.values())
    assert whole.callback_metrics["compress/weight_bits"] <= 3
    assert any("by sensitivity" in entry.text for entry in Record.of(module).journal)
    events = EventAccumulator(logger.log_dir).Reload()
    assert events.Tags()["images"] == ["compress/bits_and_costs"]
    for epoch in (0, 2):
        two = QuantizationAwareTraining(BitBudget(**BUDGET), None, scale="lsq", start=1)
        resumed = fit(User("conv"), two, max_epochs=4, ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert same(dict(module.state_dict()), dict(resumed.lightning_module.state_dict()))
        assert same(one.quantizers, two.quantizers)


def test_a_budget_is_shared_out_after_training_too(trained):
    module = copy.deepcopy(trained)
    quantization = calibrate(module, batches(), BitBudget(mean_bits=4), None)
    assert len({one.grid.bits for one in quantization.weights.values()}) > 1


def test_a_table_and_a_picture_go_to_wandb(trained):
    class Wandb:
        def log_table(self, key, columns, data):
            self.table = key, columns, data

        def log_image(self, key, images):
            self.image = images[0].size

    logger = Wandb()
    allocation = allocate_bits(sensitivity(trained, batches(), bits=(2, 8)), mean_bits=4)
    log_allocation([logger], allocation)
    assert logger.table[1] == ["layer", "weights", "bits", "bytes", "cost"]
    assert [row[0] for row in logger.table[2]] == list(allocation.bits)
    assert min(logger.image) > 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one budget"),
        ({"mean_bits": 3, "size": 900}, "one budget"),
        ({"mean_bits": 0}, "no number above 0"),
        ({"size": "3kB"}, "no number above 0"),
        ({"mean_bits": 3, "bits": ()}, "several"),
        ({"mean_bits": 3, "bits": (1, 2)}, "BinaryConnect"),
        ({"mean_bits": 3, "samples": 0}, "samples=0"),
    ],
    ids=str,
)
def test_budgets_that_say_nothing_are_refused_at_once(options, message):
    with pytest.raises(CompressionError, match=message):
        BitBudget(**options)


def test_a_budget_below_the_fewest_bits_is_refused_before_the_first_step():
    with pytest.raises(CompressionError, match="below"):
        fit(User("conv"), QuantizationAwareTraining(BitBudget(mean_bits=2, bits=(3, 4))), max_epochs=1)
