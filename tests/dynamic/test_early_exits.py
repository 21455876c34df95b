"""Exit heads beside a fit: joint, frozen, self-distilled; their files, resumes and neighbours."""

import copy
import inspect
from pathlib import Path

import pytest
import torch
from dynamic.exiting import DeepUser, trained
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from support import User, digits, every_epoch, fit, leftovers, loader, same, trainer, validation_loader
from torch import nn

import lightning_compress as lc
from lightning_compress.dynamic import EarlyExits, ExitInference, load_exits
from lightning_compress.errors import CompressionError
from lightning_compress.plan import ExitBank, Plan

IMAGES = digits()[0][:50]
POINTS = ("stages.0", "stages.1")
CONF = Path(lc.__file__).parents[1] / "conf" / "callbacks" / "early_exits.yaml"


def run(module=None, *others, seed=1, max_epochs=2, ckpt_path=None, kwargs=None, **options):
    torch.manual_seed(seed)
    module = module or DeepUser()
    callback = EarlyExits(**{"exits": POINTS, **options})
    runner = fit(module, *others, callback, max_epochs=max_epochs, ckpt_path=ckpt_path, **(kwargs or {}))
    return module, callback, runner


def test_heads_learn_and_become_a_part_of_the_network():
    module, callback, runner = run(max_epochs=4, calibrate={"drop": 0.02})
    accuracies = [float(runner.callback_metrics[f"compress/exit{exit_}_acc"]) for exit_ in range(2)]
    assert accuracies[1] > 0.5
    assert isinstance(module.network.early_exits, ExitBank)
    assert [edit.kind for edit in Plan.of(module)] == ["exits"]
    assert callback.calibration.outcome.drop <= 0.02 + 1e-9


def test_joint_training_changes_the_network_and_frozen_training_does_not():
    torch.manual_seed(0)
    start = DeepUser()
    joint, _, _ = run(copy.deepcopy(start))
    frozen, _, runner = run(copy.deepcopy(start), frozen=True)
    before = start.network.state_dict()
    after = {name: value for name, value in frozen.network.state_dict().items() if "early_exits" not in name}
    assert same(dict(before), after)
    assert not torch.equal(joint.network.fc.weight, start.network.fc.weight)
    assert float(runner.callback_metrics["compress/exit1_acc"]) > 0.2
    assert frozen.network.training == start.network.training


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "learned"},
        {"weights": {"start": [0.0, 0.0], "end": [1.0, 0.5]}},
        {"weights": lambda progress: [progress, 1.0]},
        {"weights": [0.3, 0.7]},
        {"self_distillation": 0.5},
        {"hidden": 16, "pool": 4, "learning_rate": 1e-2},
    ],
    ids=["learned", "scheduled", "function", "fixed", "self-distilled", "hidden"],
)
def test_every_kind_of_loss_trains_the_heads(options):
    module, _, runner = run(max_epochs=3, **options)
    assert float(runner.callback_metrics["compress/exit1_acc"]) > 0.3
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


def test_zero_weights_leave_the_network_as_it_is_without_exits():
    plain = DeepUser()
    torch.manual_seed(3)
    plain = DeepUser()
    fit(plain, max_epochs=2)
    torch.manual_seed(3)
    module = DeepUser()
    fit(module, EarlyExits(POINTS, weights=0.0), max_epochs=2)
    for name, value in plain.network.state_dict().items():
        assert torch.allclose(module.network.state_dict()[name], value, atol=1e-6), name


def test_accumulated_gradients_weigh_exits_and_task_alike():
    whole, parts = DeepUser("sgd", False), None
    parts = copy.deepcopy(whole)
    for one in (whole, parts):
        for norm in one.network.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.eval()
                norm.train = lambda mode=True: None
    torch.manual_seed(5)
    fit(whole, EarlyExits(POINTS), max_epochs=1, train=loader(0, 80, batch_size=80, shuffle=False))
    torch.manual_seed(5)
    fit(
        parts,
        EarlyExits(POINTS),
        max_epochs=1,
        train=loader(0, 80, batch_size=40, shuffle=False),
        accumulate_grad_batches=2,
    )
    assert torch.allclose(whole.network.fc.weight, parts.network.fc.weight, atol=1e-6)
    ours, theirs = whole.network.early_exits.state_dict(), parts.network.early_exits.state_dict()
    assert torch.allclose(ours["heads.0.weight"], theirs["heads.0.weight"], atol=1e-4)


@pytest.mark.parametrize("weights", [1.0, "learned"])
def test_resumed_fit_equals_uninterrupted_fit(tmp_path, weights):
    whole, _, _ = run(None, every_epoch(tmp_path), max_epochs=4, weights=weights)
    resumed, _, _ = run(seed=9, max_epochs=4, ckpt_path=tmp_path / "epoch=1.ckpt", weights=weights)
    assert same(dict(whole.state_dict()), dict(resumed.state_dict()))


def test_a_checkpoint_without_the_callback_is_the_plain_network(tmp_path):
    run(None, every_epoch(tmp_path), max_epochs=1)
    plain = lc.load_from_checkpoint(DeepUser, tmp_path / "epoch=0.ckpt")
    assert not any(isinstance(part, ExitBank) for part in plain.modules())
    bank = load_exits(plain, tmp_path / "epoch=0.ckpt")
    assert bool(bank.heads[0].weight.any())
    assert isinstance(plain.network.early_exits, ExitBank)


def test_checkpoint_and_model_file_after_the_fit_have_the_exits(tmp_path):
    module, _, runner = run(calibrate={"macs": 0.6})
    runner.save_checkpoint(tmp_path / "end.ckpt")
    lc.save_compressed(module, tmp_path / "model.lcz")
    images = loader().dataset.tensors[0][:50]
    expected = ExitInference(module).predict(images)
    for loaded in (
        lc.load_from_checkpoint(DeepUser, tmp_path / "end.ckpt"),
        lc.load_compressed(tmp_path / "model.lcz", into=DeepUser()),
    ):
        found = ExitInference(loaded).predict(images)
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.exits, expected.exits)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Everything that can be written in a fit, and the module after it."""
    folder = tmp_path_factory.mktemp("files")
    best = ModelCheckpoint(folder, "best", monitor="val_acc", mode="max", save_weights_only=True, save_last=True)
    saving = lc.SaveCompressed(folder, monitor="val_acc")
    module, _, _ = run(None, best, saving, calibrate={"macs": 0.6})
    return folder, module


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_exits_come_back_from_what_model_checkpoint_writes(files, name):
    folder, module = files
    loaded = lc.load_from_checkpoint(DeepUser, folder / name)
    load_exits(loaded, folder / name)
    found = ExitInference(loaded, thresholds=[1e-6, 1e-6]).predict(IMAGES)
    assert found.exits.max() < 2
    if name == "last.ckpt":
        assert torch.equal(found.logits, ExitInference(module, thresholds=[1e-6, 1e-6]).predict(IMAGES).logits)


def test_the_last_model_file_has_the_calibrated_exits_and_the_best_one_the_network_alone(files):
    folder, module = files
    loaded = lc.load_compressed(folder / "last.lcz", into=DeepUser())
    assert torch.equal(ExitInference(loaded).predict(IMAGES).logits, ExitInference(module).predict(IMAGES).logits)
    plain = lc.load_compressed(folder / "best.lcz", into=DeepUser())
    assert not any(isinstance(part, ExitBank) for part in plain.modules())


def test_a_file_without_such_exits_is_refused(files, tmp_path):
    folder, _ = files
    torch.save({"state_dict": {}}, tmp_path / "plain.ckpt")
    with pytest.raises(CompressionError, match="is no checkpoint"):
        load_exits(DeepUser(), folder / "best.lcz")
    with pytest.raises(CompressionError, match="in the module already"):
        load_exits(DeepUser(), tmp_path / "plain.ckpt")
    with pytest.raises(CompressionError, match="'EarlyExits'"):
        load_exits(DeepUser(), folder / "best.ckpt", "EarlyExit")


def test_a_second_fit_goes_on_with_the_heads_of_the_first():
    module, _ = trained()
    before = module.network.early_exits.heads[0].weight.clone()
    fit(module, EarlyExits(POINTS), max_epochs=1)
    assert not torch.equal(module.network.early_exits.heads[0].weight, before)
    assert len(Plan.of(module)) == 1


def test_a_test_lets_samples_leave_early_and_logs_what_it_took():
    module, callback = trained()
    runner = trainer(callback)
    runner.test(module, validation_loader(), verbose=False)
    assert float(runner.callback_metrics["compress/relative_macs"]) == pytest.approx(
        callback.calibration.outcome.relative_cost, abs=0.02
    )
    assert "forward" not in vars(module.network)


def test_nothing_hangs_on_the_module_afterwards_but_the_heads():
    module = DeepUser()
    attributes, hooks, followers = leftovers(module)
    run(module)
    after = leftovers(module)
    assert (after[1], after[2]) == (hooks, followers)
    assert after[0] - attributes <= {"_trainer", "trainer"}


@pytest.mark.parametrize(
    "other",
    [
        lambda: lc.WeightPruning(0.5),
        lambda: lc.QuantizationAwareTraining(8, 8),
        lambda: lc.Distillation(DeepUser().network, fidelity=False),
    ],
    ids=["pruning", "qat", "distillation"],
)
def test_it_works_beside_the_other_callbacks(other):
    module, _, runner = run(None, other(), max_epochs=3, calibrate={"macs": 0.7})
    assert float(runner.callback_metrics["compress/exit1_acc"]) > 0.2
    outcome = ExitInference(module).predict(loader().dataset.tensors[0][:64])
    assert outcome.relative_macs < 1


def test_weight_pruning_keeps_its_zeros_beside_exits():
    module, _, _ = run(None, lc.WeightPruning(0.6), max_epochs=3)
    weights = [part.weight for part in module.network.stages.modules() if isinstance(part, torch.nn.Conv2d)]
    weights.append(module.network.fc.weight)
    share = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert share == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exits": ()}, "names of modules"),
        ({"exits": (0.5, 0.2)}, "rising"),
        ({"exits": ("a", 0.2)}, "names of modules"),
        ({"exits": "stages.0"}, "one of them"),
        ({"confidence": "margn"}, "margin"),
        ({"weights": -1.0}, "negative"),
        ({"weights": "fixed"}, "learned"),
        ({"self_distillation": 1.5}, "self_distillation"),
        ({"exits": 0.5}, "one of them"),
        ({"exits": None}, "names of modules"),
        ({"weights": [1.0]}, "1 weights for 3 exits"),
        ({"weights": float("inf")}, "finite"),
        ({"temperature": "2"}, "temperature"),
        ({"pool": 1.5}, "pool"),
        ({"hidden": True}, "hidden"),
        ({"loss": "cross_entropy"}, "is no function"),
        ({"confidence": max}, "by name"),
        ({"calibrate": 0.01}, "a mapping"),
        ({"calibrate": {"dorp": 0.01}}, "Did you mean 'drop'"),
        ({"calibrate": {"drop": 0.01, "macs": 0.5}}, "needs one of"),
        ({"calibrate": {"drop": 0.01, "confidence": "margn"}}, "Did you mean 'margin'"),
    ],
)
def test_what_cannot_work_is_refused_at_once(options, message):
    with pytest.raises(CompressionError, match=message):
        EarlyExits(**options)


def test_what_the_network_does_not_have_is_refused_before_the_first_step():
    with pytest.raises(CompressionError, match=r"stages\.0"):
        run(exits=("stages.9",))
    with pytest.raises(CompressionError, match="3 weights for 2 exits"):
        run(weights=[1.0, 1.0, 1.0])


def test_calibration_without_validation_data_is_refused_before_the_first_step():
    module = DeepUser(schedule=False)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(CompressionError, match="needs validation data"):
        fit(module, EarlyExits(("stages.0",), calibrate={"macs": 0.6}), validation=False, max_epochs=1)
    assert same(dict(before), dict(module.state_dict()))


def test_two_of_them_are_refused_before_the_first_step():
    with pytest.raises(CompressionError, match="all exits to one of them"):
        fit(DeepUser(), EarlyExits(("stages.0",), name="a"), EarlyExits(("stages.1",), name="b"), max_epochs=1)


@pytest.mark.parametrize("frozen", [False, True])
def test_an_activation_in_place_behind_an_exit_disturbs_nothing(frozen):
    module = User("mlp", schedule=False)
    module.network = nn.Sequential(nn.Linear(64, 16), nn.ReLU(inplace=True), nn.Linear(16, 10))
    fit(module, EarlyExits(("0",), frozen=frozen), max_epochs=1)
    assert module.network.early_exits.points == ["0"]


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_heads_have_the_precision_of_the_network_after_a_resume_too(tmp_path, precision):
    files = every_epoch(tmp_path)
    for path in (None, tmp_path / "epoch=0.ckpt"):
        module = DeepUser(schedule=False)
        fit(module, EarlyExits(("stages.0",)), files, max_epochs=2, precision=precision, ckpt_path=path)
        assert module.network.early_exits.heads[0].weight.dtype == module.network.fc.weight.dtype != torch.float32


def test_neurons_are_cut_before_the_exits_not_with_them():
    with pytest.raises(CompressionError, match="Cut first"):
        run(User("mlp"), lc.NeuronPruning(0.3))


def test_batches_without_labels_need_a_function():
    def unlabelled(batch):
        return None

    with pytest.raises(CompressionError, match="Give labels="):
        run(labels=unlabelled)


def test_values_in_the_configuration_are_the_defaults_of_the_constructor():
    values, parameters = OmegaConf.load(CONF), inspect.signature(EarlyExits).parameters
    assert set(values) - {"_target_", "_convert_"} == set(parameters)
    for name, parameter in parameters.items():
        found = tuple(values[name]) if name == "exits" else values[name]
        assert found == parameter.default, name
    assert isinstance(instantiate(values), EarlyExits)
