"""Fake quantization in real fits: what is computed, saved, resumed, composed and refused."""

import copy

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support import ConvNet, User, every_epoch, fit, leftovers, loader, same, trainer, validation_loader
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
from lightning_compress.errors import CompressionError
from lightning_compress.quantization import QuantizationAwareTraining
from lightning_compress.quantization.settings import SCALES
from lightning_compress.registry import names
from lightning_compress.zoo.resnet import SmallResNet

OBSERVERS = names("lightning_compress.quantization.observers")
LOW = {"edge_bits": None, "add_bits": None}


class Residual(User):
    def __init__(self):
        super().__init__()
        self.network = SmallResNet((4, 8))

    def forward(self, images):
        return self.network(images.view(-1, 1, 8, 8))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)


class Manual(User):
    """Two forwards of one network in a step, the optimizer stepped by hand in between."""

    def __init__(self):
        super().__init__(schedule=False)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        images, labels = batch
        optimizer = self.optimizers()
        for _ in range(2):
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self.network(images), labels))
            optimizer.step()


class Inside(Callback):
    """What layers look like in the middle of a fit."""

    def __init__(self, look, step=15):
        self.look, self.step, self.seen = look, step, None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            self.seen = self.look(trainer, pl_module)


def levels(tensor):
    return tensor.unique().numel()


# -- what is computed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 7])
@pytest.mark.parametrize("scale", SCALES)
def test_weights_end_on_a_grid_of_that_many_bits(scale, bits):
    module = User()
    fit(module, QuantizationAwareTraining(bits, bits, scale=scale, **LOW), max_epochs=1)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            assert max(levels(row) for row in layer.weight) <= 2**bits - 1
            assert levels(layer.weight) > 2


@pytest.mark.parametrize("scale", SCALES)
def test_layers_read_activations_of_that_many_bits(scale):
    def look(trainer, module):
        seen = []
        handle = module.network[4].register_forward_pre_hook(lambda layer, args: seen.append(levels(args[0])))
        module(loader().dataset.tensors[0])
        handle.remove()
        return seen

    inside = Inside(look)
    fit(User(), QuantizationAwareTraining(8, 3, scale=scale, **LOW), inside, max_epochs=2)
    assert 3 <= inside.seen[0] <= 8


@pytest.mark.parametrize("observer", OBSERVERS)
def test_every_observer_serves_both_sides(observer):
    module = User("conv")
    quantization = QuantizationAwareTraining(4, 4, observer=observer, weight_observer=observer)
    runner = fit(module, quantization, max_epochs=3)
    assert runner.callback_metrics["val_acc"] > 0.5
    assert all(one["ready"] for one in quantization.quantizers["activations"].values())


@pytest.mark.parametrize(
    ("options", "scales"),
    [
        ({"granularity": "tensor"}, 1),
        ({"granularity": "channel"}, 16),
        ({"granularity": "group", "group_size": 8}, 64),
        ({"symmetric": (False, True)}, 16),
        ({"granularity": "group", "group_size": 8, "scale": "lsq"}, 64),
    ],
)
def test_as_many_scales_as_the_granularity_says(options, scales):
    quantization = QuantizationAwareTraining(4, 4, **LOW, **options)
    fit(User(), quantization, max_epochs=1)
    assert len(quantization.quantizers["weights"]["network.4.weight"]["scale"]) == scales


@pytest.mark.parametrize(("weights", "activations"), [(None, 8), (4, None)])
def test_none_leaves_a_side_alone(weights, activations):
    module, quantization = User(), QuantizationAwareTraining(weights, activations)
    fit(module, quantization, max_epochs=1)
    assert bool(quantization.quantizers["weights"]) == (weights is not None)
    assert bool(quantization.quantizers["activations"]) == (activations is not None)


def test_the_first_and_the_last_layer_have_bits_of_their_own():
    quantization = QuantizationAwareTraining(2, 2)
    fit(User(), quantization, max_epochs=1)
    assert [one["bits"] for one in quantization.quantizers["weights"].values()] == [8, 2, 8]


def test_each_layer_can_have_its_own_bits():
    quantization = QuantizationAwareTraining({"network.0": 5, "network.[46]": 3}, None)
    fit(User(), quantization, max_epochs=1)
    assert [one["bits"] for one in quantization.quantizers["weights"].values()] == [5, 3, 3]


def test_layers_that_read_the_same_tensor_share_a_quantizer_and_residual_adds_are_rounded():
    quantization = QuantizationAwareTraining(4, 4)
    fit(Residual(), quantization, max_epochs=1)
    inputs = quantization.quantizers["inputs"]
    assert inputs["network.blocks.1.shortcut.0"] == inputs["network.blocks.1.conv1"] == "network.blocks.1.conv1:input"
    outputs = quantization.quantizers["outputs"]
    assert {"network.blocks.0.bn2", "network.blocks.1.bn2", "network.blocks.1.shortcut.1"} <= set(outputs)


def test_shared_inputs_are_rounded_alike_in_inference_mode():
    quantization, module = QuantizationAwareTraining(4, 4, finalize=False), Residual()
    runner = fit(module, quantization, max_epochs=1)
    scores = []
    for inference_mode in (True, False):
        runner = trainer(quantization, max_epochs=1, inference_mode=inference_mode)
        scores.append(runner.validate(module, validation_loader(), verbose=False)[0])
    assert scores[0] == scores[1]


def test_a_module_that_is_called_several_times_has_one_quantizer_for_all_calls():
    class Twice(User):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

        def forward(self, images):
            return self.network[2](self.network[:2](self.network[:2](images)))

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

    quantization = QuantizationAwareTraining(4, 4)
    runner = fit(Twice(), quantization, max_epochs=3)
    assert set(quantization.quantizers["inputs"]) == {"network.0", "network.2"}
    assert runner.callback_metrics["val_acc"] > 0.5


def test_manual_optimization():
    module = Manual()
    runner = fit(module, QuantizationAwareTraining(4, 4, scale="lsq", **LOW), max_epochs=4)
    assert runner.callback_metrics["val_acc"] > 0.5
    assert levels(module.network[4].weight[0]) <= 15


@pytest.mark.parametrize(
    "options", [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 3}, {"gradient_clip_val": 0.5}]
)
@pytest.mark.parametrize("scale", ["observed", "lsq"])
def test_whatever_the_trainer_does(scale, options):
    module = User("conv")
    runner = fit(module, QuantizationAwareTraining(4, 4, scale=scale), max_epochs=3, **options)
    assert runner.callback_metrics["val_acc"] > 0.4
    assert levels(module.network.branch.weight[0]) <= 15


# -- schedules --------------------------------------------------------------------------------------------------------


def test_nothing_is_rounded_before_the_start():
    def look(trainer, module):
        images = loader().dataset.tensors[0]
        with torch.no_grad():
            plain = copy.deepcopy(module.network)
            return levels(module.network[4].weight), torch.equal(module.eval()(images), plain.eval()(images))

    before, after = Inside(look, step=5), Inside(look, step=15)
    L.seed_everything(1)
    fit(User(), QuantizationAwareTraining(2, 2, start=1), before, after, max_epochs=2)
    L.seed_everything(1)
    inside = Inside(lambda _, module: module.network[4].weight.detach().clone(), step=9)
    fit(User(), QuantizationAwareTraining(2, 2, start=1), inside, max_epochs=2)
    L.seed_everything(1)
    plain = Inside(lambda _, module: module.network[4].weight.detach().clone(), step=9)
    fit(User(), plain, max_epochs=2)
    assert torch.equal(inside.seen, plain.seen), "the very fit that it would be without"


def test_scales_stop_at_the_freeze():
    seen = []

    class Scales(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            places = quantization.network.activations
            seen.append([one.scale.detach().clone() for one in places.values()])

    quantization = QuantizationAwareTraining(4, 4, freeze=2, scale="lsq")
    fit(User(), quantization, Scales(), max_epochs=4)
    assert not same(seen[10], seen[19])
    assert same(seen[20], seen[39])


def test_batch_norm_statistics_stop_at_their_freeze():
    seen = []

    class Means(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(pl_module.network[1].running_mean.clone())

    module = User()
    fit(module, QuantizationAwareTraining(freeze_batch_norm=2), Means(), max_epochs=4)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[3])


def test_bits_change_in_mid_fit():
    seen = []

    class Bits(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(quantization.figures())

    quantization = QuantizationAwareTraining({0: 8, 0.5: 4}, {0: 8, 3: 2}, edge_bits=None)
    module = User()
    fit(module, quantization, Bits(), max_epochs=4)
    assert [one["weight_bits"] for one in seen] == [8, 8, 4, 4]
    assert [one["activation_bits"] for one in seen] == [8, 8, 8, 2]
    assert any("bits changed" in entry.text for entry in lc.plan.Record.of(module).journal)


# -- checkpoints ------------------------------------------------------------------------------------------------------

FITS = {
    "observed": {"freeze": 3},
    "lsq": {"scale": "lsq", "freeze": 3, "start": 1},
    "lsq+": {"scale": "lsq+"},
    "pact": {"scale": "pact"},
    "histogram": {"observer": "mse", "weight_observer": "mse"},
    "ladder": {"weight_bits": {0: 8, 0.4: 3}, "activation_bits": {0: 8, 2: 4}, "scale": "lsq", "freeze_batch_norm": 3},
}


def fit_of(case):
    return QuantizationAwareTraining(**{"weight_bits": 4, "activation_bits": 4, **FITS[case]})


@pytest.mark.parametrize("case", FITS)
def test_resume_is_exact_before_and_after_the_freeze_and_in_mid_epoch(tmp_path, case):
    L.seed_everything(1)
    checkpoint = every_epoch(tmp_path, every_n_train_steps=1)
    checkpoint.filename = "{step}"
    one = fit_of(case)
    whole = fit(User("conv"), one, checkpoint, max_epochs=4)
    for step in (7, 20, 33):
        L.seed_everything(2)
        two = fit_of(case)
        resumed = fit(User("conv"), two, max_epochs=4, ckpt_path=tmp_path / f"step={step}.ckpt")
        assert same(whole.lightning_module.state_dict(), resumed.lightning_module.state_dict())
        assert same(one.quantizers, two.quantizers)
        assert same(one.state_dict(), two.state_dict())


def test_a_checkpoint_loads_into_the_vanilla_class(tmp_path):
    fit(User("conv"), QuantizationAwareTraining(4, 4, scale="lsq"), every_epoch(tmp_path), max_epochs=2)
    checkpoint = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    plain = User("conv")
    plain.load_state_dict(checkpoint["state_dict"], strict=True)
    assert levels(plain.network.branch.weight) > 300, "the real-valued weights"
    loaded = User.load_from_checkpoint(tmp_path / "epoch=1.ckpt", strict=True)
    assert same(loaded.state_dict(), plain.state_dict())


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_test_on_a_fresh_module_scores_what_the_validation_has(tmp_path, weights_only):
    checkpoint = every_epoch(tmp_path, save_weights_only=weights_only)
    runner = fit(User("conv"), fit_of("lsq"), checkpoint, max_epochs=3)
    fresh = trainer(fit_of("lsq"))
    score = fresh.test(User("conv"), validation_loader(), ckpt_path=tmp_path / "epoch=2.ckpt", verbose=False)
    assert score[0]["test_acc"] == runner.callback_metrics["val_acc"].item()


def test_after_the_fit_a_test_with_the_callback_scores_the_same():
    module = User("conv")
    runner = fit(module, fit_of("lsq"), max_epochs=3)
    validated = runner.callback_metrics["val_acc"].item()
    assert runner.test(module, validation_loader(), verbose=False)[0]["test_acc"] == validated


def test_a_checkpoint_without_quantizers_is_evaluated_as_it_is(tmp_path):
    fit(User("conv"), every_epoch(tmp_path), max_epochs=1)
    with pytest.warns(UserWarning, match="written without it"):
        trainer(fit_of("lsq")).test(
            User("conv"), validation_loader(), ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False
        )


def test_nothing_is_left_on_the_module():
    module, plain = User("conv"), User("conv")
    classes = [type(part) for part in module.modules()]
    fit(plain, lc.training.Replay(), max_epochs=1)
    fit(module, QuantizationAwareTraining(4, 4, scale="lsq"), max_epochs=1)
    assert [type(part) for part in module.modules()] == classes
    assert leftovers(module) == leftovers(plain)


def test_nothing_is_left_after_a_fit_that_fails():
    class Fails(Callback):
        def on_train_batch_end(self, *_):
            raise KeyError("boom")

    module = User("conv")
    classes = [type(part) for part in module.modules()]
    with pytest.raises(KeyError, match="boom"):
        fit(module, QuantizationAwareTraining(4, 4), Fails(), max_epochs=1)
    assert [type(part) for part in module.modules()] == classes
    assert not module.network.branch._forward_pre_hooks


# -- composition ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "reverse"), [*((scale, False) for scale in SCALES), ("observed", True)])
def test_pruned_zeros_stay_zeros_in_one_fit_in_either_order(scale, reverse):
    module, pruning = User(), lc.WeightPruning(0.8)
    callbacks = [pruning, QuantizationAwareTraining(3, 3, scale=scale, **LOW)]
    fit(module, *(callbacks[::-1] if reverse else callbacks), max_epochs=3)
    for name, parameter in module.named_parameters():
        assert not parameter.detach()[~pruning.masks.keep(name, parameter)].any()
    assert pruning.reached == pytest.approx(0.8, abs=1e-4)


def test_quantization_of_a_pruned_network_keeps_every_zero():
    module, pruning = User(), lc.WeightPruning(0.7)
    fit(module, pruning, max_epochs=3)
    dead = {name: parameter == 0 for name, parameter in module.named_parameters() if parameter.dim() > 1}
    fit(module, pruning, QuantizationAwareTraining(4, 4), max_epochs=2)
    for name, zeros in dead.items():
        assert not module.get_parameter(name).detach()[zeros].any()


@pytest.mark.parametrize("scale", ["observed", "lsq", "lsq+"])
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_scales_follow_neurons_that_go(network, scale):
    module, quantization = User(network), QuantizationAwareTraining(4, 4, scale=scale, **LOW)
    runner = fit(module, lc.NeuronPruning(0.4), quantization, max_epochs=5)
    for name, state in quantization.quantizers["weights"].items():
        assert len(state["scale"]) == len(module.get_parameter(name))
    assert runner.callback_metrics["val_acc"] > 0.2
    assert lc.Plan.of(module).edits


def test_a_rolled_back_cut_brings_the_scales_back():
    module, quantization = User(), QuantizationAwareTraining(4, 4, scale="lsq", **LOW)
    gate = lc.Recovery("val_acc", tolerance=0.0, patience=1)
    fit(module, lc.NeuronPruning(0.6, recover=gate), quantization, max_epochs=6)
    for name, state in quantization.quantizers["weights"].items():
        assert len(state["scale"]) == len(module.get_parameter(name))
        assert bool((state["scale"] > 0).all())


def test_quantization_with_a_teacher():
    torch.manual_seed(0)
    module = User("conv")
    teacher = ConvNet()
    runner = fit(module, QuantizationAwareTraining(4, 4), lc.Distillation(teacher, alpha=0.3), max_epochs=3)
    assert runner.callback_metrics["val_acc"] > 0.4
    assert levels(module.network.branch.weight[0]) <= 15


def test_learned_scales_are_in_no_optimizer_of_the_user():
    def look(trainer, module):
        own = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
        return own == {id(p) for p in module.parameters()}, list(quantization.network.learned)

    quantization = QuantizationAwareTraining(4, 4, scale="lsq")
    inside = Inside(look)
    fit(User(optimizer="adamw"), quantization, inside, max_epochs=2)
    assert inside.seen[0]
    assert "network.4.weight/scale" in inside.seen[1]


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bits": 1}, "BinaryConnect"),
        ({"weight_bits": 9}, "from 2 to 8"),
        ({"activation_bits": 0}, "from 2 to 8"),
        ({"weight_bits": 4.0}, "from 2 to 8"),
        ({"weight_bits": True}, "from 2 to 8"),
        ({"weight_bits": {}}, "empty"),
        ({"weight_bits": {1: 4}}, "time 0"),
        ({"weight_bits": {0: 8, 1.5: 4}}, "share of the fit"),
        ({"weight_bits": {None: 4}}, "time 0"),
        ({"weight_bits": {0: 8, "fc": 4}}, "time 0"),
        ({"weight_bits": "x"}, "from 2 to 8"),
        ({"weight_bits": (4,)}, "from 2 to 8"),
        ({"symmetric": True}, "one for weights"),
        ({"symmetric": (True,)}, "one for weights"),
        ({"narrow": "no"}, "neither True nor False"),
        ({"finalize": "no"}, "neither True nor False"),
        ({"granularity": "group", "group_size": 2.5}, "whole number"),
        ({"observer": None}, "No None"),
        ({"weight_bits": None, "activation_bits": None}, "nothing to quantize"),
        ({"scale": "lsg"}, "Did you mean 'lsq'"),
        ({"observer": "minmix"}, "Did you mean 'minmax'"),
        ({"granularity": "row"}, "granularity"),
        ({"granularity": "group"}, "group size"),
        ({"group_size": 4}, "group size"),
        ({"start": -1}, "start=-1"),
        ({"freeze": 1.5}, "freeze=1.5"),
        ({"edge_bits": 12}, "edge_bits=12"),
        ({"scale": "lsq", "symmetric": (False, False)}, "symmetric weights"),
        ({"scale_rate": 0}, "scale_rate"),
        ({"scale_rate": "x"}, "scale_rate"),
        ({"targets": "fc1"}, r"\('fc1',\)"),
    ],
    ids=str,
)
def test_bad_values_are_refused_at_once(options, message):
    with pytest.raises(CompressionError, match=message):
        QuantizationAwareTraining(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["network.9"]}, "network.9"),
        ({"targets": ["network.1.weight"]}, "norms stay"),
        ({"granularity": "group", "group_size": 7}, "do not divide"),
        ({"weight_bits": {"network.8": 4}}, "matches no layer"),
    ],
)
def test_layers_that_cannot_be_quantized_are_refused_before_the_first_step(options, message):
    module = User()
    with pytest.raises(CompressionError, match=message):
        fit(module, QuantizationAwareTraining(**options), max_epochs=1)
    assert type(module.network[0]) is nn.Linear


def test_computed_weights_are_refused():
    module = User()
    module.network[4] = nn.utils.parametrizations.weight_norm(nn.Linear(32, 16))
    with pytest.raises(CompressionError, match=r"network.4.*exclude"):
        fit(module, QuantizationAwareTraining(), max_epochs=1)


def test_no_training_data_is_refused():
    with pytest.raises(CompressionError, match="no training"):
        fit(User(), QuantizationAwareTraining(), max_epochs=1, limit_train_batches=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused_before_the_first_step(value):
    images, labels = loader().dataset.tensors
    images = images.clone()
    images[0, 0] = value
    data = DataLoader(TensorDataset(images, labels), 40)
    with pytest.raises(CompressionError, match=r"'network.0' reads values that are not finite"):
        fit(User(), QuantizationAwareTraining(), train=data, max_epochs=1)


def test_two_callbacks_on_one_tensor_are_refused_by_both_names():
    with pytest.raises(CompressionError, match=r"QuantizationAwareTraining\[two\] and QuantizationAwareTraining"):
        fit(User(), QuantizationAwareTraining(), QuantizationAwareTraining(4, name="two"), max_epochs=1)


def test_two_callbacks_on_different_layers_work_together():
    module = User()
    fit(
        module,
        QuantizationAwareTraining(2, 2, targets=["network.4"], name="low"),
        QuantizationAwareTraining(8, 8, exclude=["network.4"]),
        max_epochs=2,
    )
    assert levels(module.network[4].weight[0]) <= 3
    assert levels(module.network[0].weight) > 50


def test_a_checkpoint_of_other_layers_is_refused(tmp_path):
    fit(User(), QuantizationAwareTraining(), every_epoch(tmp_path), max_epochs=1)
    with pytest.raises(CompressionError, match="same bits"):
        fit(User(), QuantizationAwareTraining(exclude=["network.4"]), max_epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt")
