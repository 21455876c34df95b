"""What criteria get to see: gathered in real fits, compared with what is worked out by hand."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support import User, fit, loader, same
from torch import nn

import lightning_compress as lc
from lightning_compress.errors import CompressionError
from lightning_compress.pruning import needs
from lightning_compress.pruning.curvature import curvature
from lightning_compress.pruning.gathering import FIRST, STRIDE, norm_of_inputs
from lightning_compress.pruning.gradients import GradientSums
from lightning_compress.surgery import gather
from lightning_compress.training import Schedule


class Stop(Exception):
    pass


def seen_at_first_cut(module, *kinds, callback=lc.WeightPruning, others=(), **options):
    """The evidence of the kinds asked for, by name, at the only cut after the first epoch."""
    seen = {}

    @needs(*kinds)
    def look(evidence):
        seen[evidence.name] = evidence
        return evidence.per_judged(torch.rand(evidence.weight.shape))

    class Once(callback):
        def cut(self, target):
            super().cut(target)
            raise Stop

    pruning = Once(0.1, criterion=look, schedule=Schedule("linear", start=1, rounds=1), **options)
    with pytest.raises(Stop):
        fit(module, *others, pruning, max_epochs=3)
    return seen


class Gradients(Callback):
    """Sums by hand what the gradients say."""

    def __init__(self):
        self.steps, self.sums = 0, {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps += 1
        for name, parameter in pl_module.named_parameters():
            weight, gradient = parameter.detach().double(), parameter.grad.double()
            values = gradient, gradient.square(), (weight * gradient).abs(), -weight * gradient
            own = self.sums.get(name, [0, 0, 0, 0])
            self.sums[name] = [one + value for one, value in zip(own, values, strict=True)]


KINDS = ("gradient", "squared_gradient", "product", "movement")


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}], ids=str)
def test_gradients_are_summed_over_the_steps_before_clipping(options):
    hand, seen = Gradients(), {}

    @needs(*KINDS)
    def look(evidence):
        seen[evidence.name] = evidence
        return evidence.weight.abs()

    class Once(lc.WeightPruning):
        def cut(self, target):
            super().cut(target)
            raise Stop

    pruning = Once(0.1, criterion=look, schedule=Schedule("linear", start=1, rounds=1))
    with pytest.raises(Stop):
        fit(User(), hand, pruning, max_epochs=3, gradient_clip_val=0.01, **options)
    assert hand.steps == (5 if options else 10)
    for name, evidence in seen.items():
        for kind, total in zip(KINDS, hand.sums[name], strict=True):
            expected = total if kind == "movement" else total / hand.steps
            torch.testing.assert_close(getattr(evidence, kind).double(), expected, rtol=1e-4, atol=1e-7)


def test_gradients_begin_anew_with_a_cut_and_the_movement_goes_on():
    layer = nn.Linear(2, 1, bias=False)
    sums = GradientSums(layer, ["weight"], KINDS)
    for _ in range(2):
        layer.weight.grad = torch.ones(1, 2)
        sums.add()
    sums.reset()
    with pytest.raises(CompressionError, match="No gradients have been gathered"):
        sums.evidence()
    layer.weight.grad = torch.ones(1, 2)
    sums.add()
    found = sums.evidence()
    torch.testing.assert_close(found["gradient"]["weight"], torch.ones(1, 2))
    torch.testing.assert_close(found["movement"]["weight"], -3 * layer.weight.detach())


def test_a_step_that_a_gradient_scaler_will_skip_does_not_count():
    layer = nn.Linear(2, 1, bias=False)
    sums = GradientSums(layer, ["weight"], {"gradient"})
    for value in (1.0, float("inf"), 3.0):
        layer.weight.grad = torch.full((1, 2), value)
        sums.add(check=True)
    assert sums.evidence()["gradient"]["weight"].tolist() == [[2.0, 2.0]]


def test_gradients_of_neurons_are_those_of_the_weights_that_make_them():
    hand = Gradients()
    seen = seen_at_first_cut(User("conv"), "product", callback=lc.NeuronPruning, others=[hand])
    stem = seen["network.stem"].product
    parts = [hand.sums[name][2].flatten(1) for name in ("network.stem.weight", "network.branch.weight")]
    torch.testing.assert_close(stem.double(), torch.cat(parts, dim=1) / hand.steps, rtol=1e-4, atol=1e-7)


def test_gradients_follow_the_neurons_that_go():
    """Wherever a neuron has been cut, the sums are those of what is left."""
    module, weights = User(), lc.WeightPruning(0.5, criterion="taylor")
    fit(module, lc.NeuronPruning(0.5), weights, max_epochs=4)
    assert weights.on_target
    assert module.network[0].out_features + module.network[4].out_features == 24


def quadratic():
    """A loss whose gradient and Hessian are known."""
    module = nn.Linear(3, 2, bias=False)
    root = torch.randn(6, 6)
    hessian = root @ root.T + torch.eye(6)
    return module, hessian, lambda copy: 0.5 * copy.weight.flatten() @ hessian @ copy.weight.flatten()


def test_gradient_hessian_product_and_diagonal_are_those_of_the_loss():
    module, hessian, loss = quadratic()
    found = curvature(
        module, [loss], ["weight"], {"loss_gradient", "hessian_gradient", "hessian_diagonal"}, probes=4000
    )
    gradient = hessian @ module.weight.detach().flatten()
    torch.testing.assert_close(found["loss_gradient"]["weight"].flatten(), gradient, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["hessian_gradient"]["weight"].flatten(), hessian @ gradient, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["hessian_diagonal"]["weight"].flatten(), hessian.diagonal(), rtol=0.2, atol=0.5)


@pytest.mark.parametrize("criterion", ["snip", "grasp", "obd"])
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_pruning_before_the_first_step_leaves_module_and_random_states_alone(network, criterion):
    """What is worked out on a copy does not move the original: a cut of nothing changes nothing in the fit."""
    fits = []
    for pruning in ([], [lc.WeightPruning(1e-9, criterion=criterion, schedule="one_shot")]):
        L.seed_everything(3)
        module = User(network)
        fit(module, *pruning, max_epochs=1)
        fits.append(module.state_dict())
    assert same(*fits)


def test_snip_keeps_what_the_loss_depends_on():
    """Inputs that are always zero have no gradient: their weights go first, whatever their size."""
    module = User()
    pruning = lc.WeightPruning(0.2, criterion="snip", schedule="one_shot", max_step=0.2, targets=["network.0"])
    images = next(iter(loader(batch_size=400, shuffle=False)))[0]
    silent = (images == 0).all(0)
    assert silent.sum() > 3
    with torch.no_grad():
        module.network[0].weight[:, silent] = 10.0
    fit(module, pruning, max_epochs=1)
    assert not module.network[0].weight[:, silent].any()


def test_criteria_that_work_out_gradients_refuse_manual_optimization():
    class Manual(User):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    with pytest.raises(CompressionError, match="training_step returns no loss.*taylor"):
        fit(Manual(schedule=False), lc.WeightPruning(0.1, criterion="snip", schedule="one_shot"), max_epochs=1)
    pruning = lc.WeightPruning(0.5, criterion="taylor")
    fit(Manual(schedule=False), pruning, max_epochs=3)
    assert pruning.on_target


class Inputs(Callback):
    """Keeps what a layer reads in the batches that are to be looked at."""

    def __init__(self, layer):
        self.layer, self.batch, self.kept = layer, 0, []

    def on_fit_start(self, trainer, pl_module):
        pl_module.get_submodule(self.layer).register_forward_pre_hook(self.keep)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = batch_idx

    def keep(self, module, args):
        if module.training and torch.is_grad_enabled() and (self.batch < FIRST or self.batch % STRIDE == 0):
            self.kept.append(args[0].detach().clone())


def test_activations_are_looked_at_in_the_first_batches_and_every_few():
    module, inputs = User(), Inputs("network.0")
    seen = seen_at_first_cut(module, "input_norm", others=[inputs])
    rows = torch.cat(inputs.kept)
    assert len(inputs.kept) == FIRST + 2  # of 10 batches: 0 to 3, then 4 and 8
    expected = rows.double().square().mean(0).sqrt().float()
    torch.testing.assert_close(seen["network.0.weight"].input_norm, expected.expand(32, 64))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(6, 8, 3, groups=2, bias=False), (5, 6, 9, 9)),
        (nn.ConvTranspose2d(6, 4, 3, bias=False), (5, 6, 9, 9)),
        (nn.Conv1d(3, 4, 2, bias=False), (5, 3, 9)),
    ],
    ids=str,
)
def test_the_norm_of_an_input_stands_where_its_weights_do(layer, shape):
    """With one input channel silent, exactly the weights that read it have norm zero."""
    for channel in range(shape[1]):
        value = torch.rand(shape)
        value[:, channel] = 0
        norms = norm_of_inputs(layer, gather(nn.Sequential(layer), [value], ["0"])["0"])
        value = torch.zeros(shape).requires_grad_(False)
        value[:, channel] = 1
        layer.zero_grad()
        layer(value).square().sum().backward()
        assert norms.shape == layer.weight.shape
        assert torch.equal(norms == 0, layer.weight.grad != 0)


def test_criteria_of_inputs_refuse_weights_without_a_layer_that_reads_them():
    class Memory(User):
        def __init__(self):
            super().__init__()
            self.network = nn.ModuleDict({"memory": nn.LSTM(8, 12, batch_first=True), "head": nn.Linear(12, 10)})

        def forward(self, images):
            return self.network["head"](self.network["memory"](images.view(-1, 8, 8))[0][:, -1])

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

    with pytest.raises(CompressionError, match=r"'network.memory.weight_hh_l0' cannot be looked at.*exclude="):
        fit(Memory(), lc.WeightPruning(0.5, criterion="wanda"), max_epochs=1)
    fit(Memory(), lc.WeightPruning(0.5, criterion="wanda", exclude=["network.memory"]), max_epochs=3)


def test_ranks_of_feature_maps_are_those_of_matrices():
    class Net(nn.Sequential):
        pass

    maps = torch.randn(4, 3, 6, 6)
    maps[:, 1] = maps[:, 1, :, :1] * maps[:, 1, :1]  # outer products
    maps[:, 2] = 0
    found = gather(Net(nn.Conv2d(3, 2, 3)), [maps], ["0"], sums=("ranks",))["0"]
    assert found.mean_rank.tolist() == [6.0, 1.0, 0.0]
    with pytest.raises(CompressionError, match=r"'zeros' has not been counted, only \['ranks'\]"):
        _ = found.zero_share


def test_obs_in_a_fit_leaves_outputs_nearer_than_magnitude():
    """The same share of the first layer gone, straight after the cut."""
    L.seed_everything(0)
    trained = User()
    fit(trained, max_epochs=6)
    images = next(iter(loader(400, 800, batch_size=400)))[0]
    changes = {}
    for criterion in ("obs", "magnitude"):
        module = User()
        module.load_state_dict(trained.state_dict())

        class Once(lc.WeightPruning):
            def cut(self, target):
                network = self.session.module.network
                before = network[0](images)
                super().cut(target)
                changes[self.name] = float((network[0](images) - before).square().mean())
                raise Stop

        options = {"targets": ["network.0"], "schedule": "one_shot", "max_step": 0.7}
        with pytest.raises(Stop):
            fit(module, Once(0.7, criterion=criterion, data=loader(), name=criterion, **options), max_epochs=1)
    assert changes["obs"] < 0.5 * changes["magnitude"]


def test_a_frozen_layer_is_not_taken_for_worthless():
    """Its gradients are nothing, not zero: a criterion of training steps is refused, one on a copy sees them."""

    class Frozen(User):
        def __init__(self):
            super().__init__()
            self.network[0].requires_grad_(False)

    module, options = Frozen(), {"schedule": Schedule("linear", start=0, end=1, rounds=2), "max_step": 0.6}
    with pytest.raises(CompressionError, match=r"No gradient has reached 'network.0.weight'.*exclude=\('network.0',\)"):
        fit(module, lc.WeightPruning(0.5, criterion="taylor", **options), max_epochs=2)
    assert not (module.network[0].weight == 0).any()
    fit(module, lc.WeightPruning(0.5, criterion="snip", **options), max_epochs=2)
    assert 0.2 < float((module.network[0].weight == 0).float().mean()) < 0.8


def test_of_a_new_module_nothing_is_known_until_it_has_been_trained():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    sums = GradientSums(net, ["0.weight", "1.weight", "1.0.weight"], ["gradient"])
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    sums.add()
    spec = {
        "type": "Sequential",
        "children": [["0", {"type": "Linear", "arguments": {"in_features": 2, "out_features": 1}}]],
    }
    edit = lc.plan.ReplaceModule("1", spec)
    edit.apply(net)
    back = sums.follow(edit)
    assert sums.steps == 0
    back()
    assert sums.steps == 1
