"""Binary and ternary weights in real fits, and the functions that they are seen through."""

import copy

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support import User, digits, every_epoch, fit, mlp, same, trainer, validation_loader
from torch import nn

import lightning_compress as lc
from lightning_compress.errors import CompressionError
from lightning_compress.quantization import (
    BinaryConnect,
    QuantizationAwareTraining,
    TernaryWeights,
    WeightClustering,
)
from lightning_compress.quantization.binary import (
    binarize,
    binarize_activations,
    binarize_scaled,
    binarize_stochastically,
    glorot_bound,
    straight_through,
)
from lightning_compress.quantization.ternary import ternarize, ternarize_trained

WEIGHTS = ["network.0.weight", "network.4.weight", "network.6.weight"]
CALLBACKS = {
    "deterministic": lambda: BinaryConnect(),
    "stochastic": lambda: BinaryConnect("stochastic"),
    "one": lambda: BinaryConnect(scale=None),
    "bwn": lambda: BinaryConnect(scale="bwn"),
    "twn": lambda: TernaryWeights(),
    "ttq": lambda: TernaryWeights("ttq"),
}
MOST = {"deterministic": 2, "stochastic": 2, "one": 2, "bwn": 192, "twn": 3, "ttq": 3}


def values(module):
    state = module.state_dict()
    return [len(state[name].unique()) for name in WEIGHTS]


# -- functions --------------------------------------------------------------------------------------------------------


def test_the_bound_is_that_of_glorot():
    assert glorot_bound(torch.Size([100, 300])) == pytest.approx((1.5 / 400) ** 0.5)
    assert glorot_bound(torch.Size([8, 4, 3, 3])) == pytest.approx((1.5 / (12 * 9)) ** 0.5)


def test_drawn_signs_have_the_chance_of_the_hard_sigmoid():
    torch.manual_seed(0)
    weight = torch.tensor([-2.0, -0.5, 0.25, 1.0, 3.0]).repeat(20_000, 1)
    plus = (binarize_stochastically(weight) > 0).float().mean(0)
    assert plus.tolist() == pytest.approx([0.0, 0.25, 0.625, 1.0, 1.0], abs=0.01)


def test_the_scale_of_bwn_has_the_least_squared_error():
    weight = torch.randn(5, 40)
    found = (weight - binarize_scaled(weight)).square().sum(1)
    for factor in (0.9, 1.1):
        assert (found < (weight - factor * binarize_scaled(weight)).square().sum(1)).all()


def test_twn_is_near_the_ternary_weights_of_least_squared_error():
    weight = torch.randn(2000)
    found = (weight - ternarize(weight)).square().sum()
    best = min(
        (weight - (weight.abs() > edge) * weight.sign() * weight.abs()[weight.abs() > edge].mean()).square().sum()
        for edge in torch.linspace(0.05, 2.5, 60)
    )
    assert best <= found * 1.0001
    assert found <= best * 1.02


@pytest.mark.parametrize("function", [binarize, binarize_stochastically, binarize_scaled, ternarize])
def test_gradients_pass_straight_through(function):
    weight = torch.randn(6, 5, requires_grad=True)
    factor = torch.randn(6, 5)
    (function(weight) * factor).sum().backward()
    assert torch.equal(weight.grad, factor)


def test_what_goes_straight_through_is_exact():
    weight = torch.rand(1000) * 1e-3
    assert torch.equal(straight_through(weight, torch.full((1000,), 0.1)), torch.full((1000,), 0.1))


def test_gradients_of_ttq_are_those_of_the_paper():
    weight = torch.tensor([1.0, 0.5, 0.01, -0.8, -0.02], requires_grad=True)
    positive, negative = (torch.tensor(v, requires_grad=True) for v in (3.0, 2.0))
    gradient = torch.tensor([1.0, 10.0, 100.0, 1000.0, 1e4])
    seen = ternarize_trained(weight, positive, negative)
    assert seen.tolist() == [3.0, 3.0, 0.0, -2.0, 0.0]
    seen.backward(gradient)
    assert weight.grad.tolist() == [3.0, 30.0, 100.0, 2000.0, 1e4]
    assert (positive.grad.item(), negative.grad.item()) == (11.0, -1000.0)


def test_gradients_of_activations_pass_inside_the_bounds_alone():
    inputs = torch.tensor([[-2.0, -0.5, 0.0, 0.7, 1.5]], requires_grad=True)
    seen = binarize_activations(inputs)
    assert seen.tolist() == [[-1, -1, 1, 1, 1]]
    seen.sum().backward()
    assert inputs.grad.tolist() == [[0, 1, 1, 1, 0]]


@pytest.mark.parametrize("function", [binarize, binarize_scaled, ternarize])
def test_what_has_few_values_already_stays_bit_for_bit(function):
    weight = function(torch.randn(7, 33))
    assert torch.equal(function(weight), weight)


@pytest.mark.parametrize("function", [binarize, binarize_stochastically, binarize_scaled, ternarize])
def test_zeros_of_pruning_stay_zeros(function):
    weight = torch.randn(20, 20)
    weight[::2] = 0
    assert (function(weight)[::2] == 0).all()


# -- fits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CALLBACKS)
def test_a_fit_learns_and_ends_with_few_values(case):
    L.seed_everything(1, verbose=False)
    module = User(schedule=False)
    module.network = mlp(96)
    runner = fit(module, CALLBACKS[case](), max_epochs=12)
    assert all(number <= MOST[case] for number in values(module))
    assert runner.callback_metrics["val_acc"] > 0.6
    images, labels = digits()
    found = (module.eval()(images[1000:1200]).argmax(1) == labels[1000:1200]).float().mean()
    assert found == runner.callback_metrics["val_acc"]  # what was validated is what is left behind
    assert type(module.network[0]) is nn.Linear
    assert list(module.state_dict()) == list(User().state_dict())


@pytest.mark.parametrize("case", CALLBACKS)
def test_without_finalize_the_real_valued_weights_are_left(case):
    callback = CALLBACKS[case]()
    callback._finalize = False
    module = User()
    fit(module, callback, max_epochs=1)
    assert all(number > 100 for number in values(module)[:1])


class Clipped(Callback):
    def __init__(self, bounds):
        self.bounds, self.steps = bounds, 0

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.steps += 1
        for name, bound in zip(WEIGHTS, self.bounds, strict=True):
            assert pl_module.get_parameter(name).abs().max() <= bound


def test_real_valued_weights_are_clipped_to_their_bounds_after_each_step():
    bounds = [glorot_bound(User().get_parameter(name).shape) for name in WEIGHTS]
    for callback, limits in ((BinaryConnect(), bounds), (BinaryConnect(scale=None), [1.0] * 3)):
        clipped = Clipped(limits)
        fit(User(optimizer="sgd"), callback, clipped, max_epochs=2)
        assert clipped.steps == 20


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
    ],
    ids=str,
)
@pytest.mark.parametrize("case", ["stochastic", "bwn", "ttq"])
def test_few_values_whatever_the_trainer_does(case, options):
    module = User("conv")
    fit(module, CALLBACKS[case](), max_epochs=2, **options)
    assert len(module.network.stem.weight.unique()) <= (16 if case == "bwn" else 3)


def assert_equal_fits(one, two):
    assert same(dict(one.lightning_module.state_dict()), dict(two.lightning_module.state_dict()))
    for a, b in zip(one.optimizers, two.optimizers, strict=True):
        assert same(a.state_dict(), b.state_dict())


@pytest.mark.parametrize("epoch", [1])
@pytest.mark.parametrize("case", CALLBACKS)
def test_resumed_fit_equals_uninterrupted_fit(tmp_path, case, epoch):
    L.seed_everything(1, verbose=False)
    whole = fit(User(), CALLBACKS[case](), every_epoch(tmp_path), max_epochs=4)
    L.seed_everything(2, verbose=False)
    resumed = fit(User(), CALLBACKS[case](), max_epochs=4, ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
    assert_equal_fits(whole, resumed)


@pytest.mark.parametrize("case", ["stochastic", "ttq"])
@pytest.mark.parametrize("step", [16])
def test_resume_in_mid_epoch_is_exact(tmp_path, case, step):
    L.seed_everything(1, verbose=False)
    checkpoint = every_epoch(tmp_path, every_n_train_steps=1)
    checkpoint.filename = "{step}"
    whole = fit(User(), CALLBACKS[case](), checkpoint, max_epochs=3)
    L.seed_everything(2, verbose=False)
    resumed = fit(User(), CALLBACKS[case](), max_epochs=3, ckpt_path=tmp_path / f"step={step}.ckpt")
    assert_equal_fits(whole, resumed)


@pytest.mark.parametrize("case", CALLBACKS)
def test_a_checkpoint_is_the_plain_modules_and_a_fresh_one_scores_the_same(tmp_path, case):
    runner = fit(User(), CALLBACKS[case](), every_epoch(tmp_path), max_epochs=3)
    state = torch.load(tmp_path / "epoch=2.ckpt", weights_only=True)["state_dict"]
    User().load_state_dict(state, strict=True)
    assert len(state["network.0.weight"].unique()) > 64
    accuracy = float(runner.callback_metrics["val_acc"])
    fresh, path = User(), tmp_path / "epoch=2.ckpt"
    found = trainer(CALLBACKS[case]()).test(fresh, validation_loader(), ckpt_path=path, verbose=False)
    assert found[0]["test_acc"] == pytest.approx(accuracy)
    again = runner.test(runner.lightning_module, validation_loader(), ckpt_path=path, verbose=False)
    assert again[0]["test_acc"] == pytest.approx(accuracy)


@pytest.mark.parametrize("case", ["deterministic", "bwn", "twn", "ttq"])
@pytest.mark.parametrize("first", [True, False])
def test_pruned_zeros_stay_zeros(case, first):
    module, pruning, few = User(), lc.WeightPruning(0.6), CALLBACKS[case]()
    fit(module, *((pruning, few) if first else (few, pruning)), max_epochs=4)
    zeros = sum(int((module.get_parameter(name) == 0).sum()) for name in WEIGHTS)
    assert zeros >= round(0.6 * 2720)
    assert case in ("twn", "ttq") or zeros == round(0.6 * 2720)


@pytest.mark.parametrize("case", CALLBACKS)
def test_neurons_go_while_weights_have_few_values(case):
    module = User()
    fit(module, CALLBACKS[case](), lc.NeuronPruning(0.5), max_epochs=4)
    assert module.network[0].out_features <= 24
    assert all(number <= MOST[case] for number in values(module))


class BothSigns(User):
    """BatchNorm before each layer but the first, so that signs say something."""

    def __init__(self):
        super().__init__()
        hidden = [part for _ in range(2) for part in (nn.Linear(48, 48), nn.BatchNorm1d(48))]
        self.network = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), *hidden, nn.Linear(48, 10))


@pytest.mark.parametrize("activations", ["sign", "xnor"])
def test_binary_activations_learn_and_leave_the_edges_alone(activations):
    L.seed_everything(1, verbose=False)
    module = BothSigns()
    runner = fit(module, BinaryConnect(scale="bwn", activations=activations), max_epochs=10)
    assert runner.callback_metrics["val_acc"] > 0.6
    numbers = [len(module.network[place].weight.unique()) for place in (0, 2, 4, 6)]
    assert numbers[0] > 1000
    assert numbers[3] > 400
    assert max(numbers[1:3]) <= 96
    assert not any(layer._forward_pre_hooks for layer in module.modules())


def test_signs_of_inputs_that_are_never_negative_are_refused():
    with pytest.raises(CompressionError, match=r"'network.4' reads no negative value.*BatchNorm"):
        fit(User(), BinaryConnect(activations="sign"), max_epochs=1)


def test_first_and_last_layer_are_kept_on_request():
    module = User()
    callback = BinaryConnect(edges="keep")
    fit(module, callback, max_epochs=1)
    assert values(module)[1] == 2
    assert min(values(module)[0], values(module)[2]) > 100


def test_two_quantizers_of_one_weight_are_refused_before_training():
    for callbacks in (
        [BinaryConnect(), TernaryWeights()],
        [BinaryConnect(), WeightClustering(4)],
        [WeightClustering(4), TernaryWeights()],
        [WeightClustering(4), QuantizationAwareTraining()],
        [QuantizationAwareTraining(), BinaryConnect()],
    ):
        module = User()
        before = copy.deepcopy(dict(module.state_dict()))
        with pytest.raises(CompressionError, match=r"would both.*'network.0.weight'.*exclude"):
            fit(module, *callbacks, max_epochs=1)
        assert same(before, dict(module.state_dict()))
    module = User()
    fit(module, BinaryConnect(targets=["network.0"]), WeightClustering(4, start=0, exclude=["network.0"]), max_epochs=1)
    assert values(module) == [2, 4, 4]
    module = User()
    fit(module, QuantizationAwareTraining(None, 8), WeightClustering(4, start=0), max_epochs=1)
    assert values(module) == [4, 4, 4]


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: BinaryConnect("random"), "mode='random' is unknown: deterministic or stochastic"),
        (lambda: BinaryConnect(scale="mean"), "scale='mean' is unknown: glorot, bwn"),
        (lambda: BinaryConnect("stochastic", scale="bwn"), "there are none"),
        (lambda: BinaryConnect(activations="tanh"), "activations='tanh' is unknown"),
        (lambda: BinaryConnect(edges="first"), "edges='first' is unknown"),
        (lambda: BinaryConnect(targets="fc"), r"write targets=\('fc',\)"),
        (lambda: TernaryWeights("binary"), "mode='binary' is unknown: twn or ttq"),
        (lambda: TernaryWeights(learning_rate=-1.0), "learning_rate=-1.0"),
        (lambda: TernaryWeights(learning_rate="x"), "learning_rate='x'"),
        (lambda: WeightClustering({}), "says nothing"),
        (lambda: WeightClustering(learning_rate=None), "learning_rate=None"),
    ],
)
def test_bad_arguments_are_refused_at_once(build, says):
    with pytest.raises(CompressionError, match=says):
        build()


def test_weights_that_are_not_finite_are_refused_before_training():
    module = User()
    with torch.no_grad():
        module.network[4].weight[0, 0] = float("nan")
    with pytest.raises(CompressionError, match=r"'network.4.weight' holds NaN"):
        fit(module, BinaryConnect(), max_epochs=1)


def test_patterns_that_match_nothing_and_layers_that_cannot_be_covered_are_refused():
    with pytest.raises(CompressionError, match="matches no parameter"):
        fit(User(), TernaryWeights(targets=["network.9"]), max_epochs=1)

    class Memory(User):
        def __init__(self):
            super().__init__()
            self.network = nn.ModuleList([nn.Linear(8, 8), nn.LSTM(8, 8), nn.Linear(8, 10)])

    with pytest.raises(CompressionError, match=r"'network.1' is a LSTM"):
        fit(Memory(), BinaryConnect(activations="sign"), max_epochs=1)


def test_a_binary_network_takes_one_bit_a_weight_in_its_file(tmp_path):
    layer = nn.Linear(256, 256, bias=False)
    binary = binarize(layer.weight.detach(), 0.1)
    with torch.no_grad():
        layer.weight.copy_(binary)
    assert lc.save_compressed(layer, tmp_path / "binary.lcz").bytes < 256 * 256 / 8 + 300
    with torch.no_grad():
        layer.weight.copy_(ternarize(torch.randn(256, 256)))
    assert lc.save_compressed(layer, tmp_path / "ternary.lcz").bytes < 256 * 256 / 8 * 1.7


@pytest.mark.parametrize("case", [*CALLBACKS, "fake"])
def test_files_written_in_a_fit_hold_few_values_and_the_fit_goes_on_with_the_others(tmp_path, case):
    callback = CALLBACKS[case]() if case in CALLBACKS else QuantizationAwareTraining(3, None, edge_bits=None)
    callback._finalize = False
    files = lc.SaveCompressed(tmp_path, monitor="val_acc")
    module = User()
    fit(module, callback, files, max_epochs=2)
    assert len(module.network[4].weight.unique()) > 300
    for path in (files.last_path, files.best_path):
        loaded = lc.load_compressed(path, into=User())
        assert max(len(row.unique()) for row in loaded.network[4].weight) <= (7 if case == "fake" else 3)
