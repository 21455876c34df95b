"""One Session and one Plan for any number of callbacks; nothing of ours stays behind."""

import copy
import pickle
import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
)
from support import (
    ConvNet,
    Look,
    User,
    digits,
    every_epoch,
    fit,
    leftovers,
    loader,
    same,
    trainer,
    validation_loader,
)
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import lightning_compress as lc
from lightning_compress.training import Replay, Session
from lightning_compress.training.session import _SESSIONS


def prunings():
    return [
        lc.WeightPruning(0.6),
        lc.NeuronPruning(0.3),
        lc.WeightPruning(0.2, targets=["*.bias"], name="biases"),
        Replay(),
    ]


def test_all_callbacks_share_one_session_and_one_plan():
    look = Look(
        lambda trainer, module: ([c._session for c in trainer.callbacks if hasattr(c, "_session")], lc.Plan.of(module))
    )
    fit(User(), look, *prunings())
    sessions, plan = look.seen[0]
    assert len(sessions) == 4
    assert len(set(map(id, sessions))) == 1
    assert len(plan) > 0


def test_our_callbacks_stand_behind_all_others_but_checkpoints(tmp_path):
    look = Look(lambda trainer, module: [type(callback).__name__ for callback in trainer.callbacks])
    fit(User(), lc.WeightPruning(0.5), lc.NeuronPruning(0.3), Replay(), look, every_epoch(tmp_path), max_epochs=3)
    assert look.seen[0] == ["Look", "Replay", "NeuronPruning", "WeightPruning", "ModelCheckpoint", "_CleanUp"]


def test_nothing_of_ours_stays_after_the_fit():
    module = User()
    before = leftovers(module)
    runner = fit(module, *prunings(), lc.NeuronPruning(0.2, criterion="apoz", name="apoz"))
    assert leftovers(module) == before
    assert module not in _SESSIONS
    assert all(not optimizer._optimizer_step_post_hooks for optimizer in runner.optimizers)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_of_ours_stays_after_a_fit_that_raises(error):
    def fail(trainer, module):
        raise error

    module = User()
    before = leftovers(module)
    with pytest.raises((error, SystemExit)):
        fit(module, Look(fail), *prunings())
    assert leftovers(module) == before
    assert module not in _SESSIONS


def test_a_checkpoint_written_on_an_exception_still_has_the_plan(tmp_path):
    def fail(trainer, module):
        raise RuntimeError

    checkpoint = ModelCheckpoint(tmp_path, filename="crash", save_on_exception=True, monitor=None, every_n_epochs=100)
    with pytest.raises(RuntimeError):
        fit(User(), lc.NeuronPruning(0.4), Look(fail), checkpoint)
    path = next(tmp_path.glob("*.ckpt"))
    assert lc.load_from_checkpoint(User, path).network[0].out_features < 32


def test_a_second_fit_of_the_same_module_works():
    module = User()
    fit(module, lc.NeuronPruning(0.2))
    width = module.network[0].out_features
    fit(module, lc.NeuronPruning(0.2))
    assert module.network[0].out_features < width < 32
    assert module(torch.zeros(2, 64)).shape == (2, 10)


def test_a_callback_starts_over_with_another_module():
    pruning = lc.WeightPruning(0.7)
    fit(User(), pruning, max_epochs=2)
    other = User()
    fit(other, pruning, max_epochs=2)
    assert (other.network[0].weight == 0).float().mean() > 0.5


def test_a_checkpoint_saved_after_the_fit_has_the_plan_and_the_masks(tmp_path):
    weights, neurons = lc.WeightPruning(0.7), lc.NeuronPruning(0.3, criterion="apoz")
    module = User()
    runner = fit(module, weights, neurons, max_epochs=4)
    runner.save_checkpoint(tmp_path / "final.ckpt")
    assert same(dict(lc.load_from_checkpoint(User, tmp_path / "final.ckpt").state_dict()), dict(module.state_dict()))
    fresh = User()
    fit(
        fresh,
        lc.WeightPruning(0.7),
        lc.NeuronPruning(0.3, criterion="apoz"),
        ckpt_path=tmp_path / "final.ckpt",
        max_epochs=6,
    )
    weight = torch.cat([p.flatten() for p in fresh.parameters() if p.dim() > 1])
    assert (weight == 0).float().mean() == pytest.approx(0.7, abs=1e-3)


def test_deepcopy_in_mid_fit_is_a_working_module():
    look = Look(lambda trainer, module: (copy.deepcopy(module), {k: v.clone() for k, v in module.state_dict().items()}))
    fit(User(), look, *prunings())
    duplicate, state = look.seen[0]
    assert same(dict(duplicate.state_dict()), state)
    checkpoint = {}
    duplicate.on_save_checkpoint(checkpoint)
    assert checkpoint == {}
    fit(duplicate, max_epochs=1)


def test_pickle_in_mid_fit_gives_a_working_module():
    look = Look(lambda trainer, module: (pickle.dumps(module), {k: v.clone() for k, v in module.state_dict().items()}))
    fit(User(), look, *prunings(), lc.NeuronPruning(0.2, criterion="apoz", name="apoz"))
    data, state = look.seen[0]
    module = pickle.loads(data)
    assert same(dict(module.state_dict()), state)
    fit(module, max_epochs=1)


def test_the_users_own_checkpoint_hooks_are_called_once(tmp_path):
    class Hooked(User):
        calls = ()

        def on_save_checkpoint(self, checkpoint):
            self.calls = (*self.calls, "save")
            checkpoint["mine"] = 1

        def on_load_checkpoint(self, checkpoint):
            self.calls = (*self.calls, f"load {checkpoint['mine']}")

    module = Hooked()
    runner = fit(module, *prunings(), max_epochs=1)
    module.calls = ()
    runner.save_checkpoint(tmp_path / "a.ckpt")
    fit(module, *prunings(), ckpt_path=tmp_path / "a.ckpt", max_epochs=2)
    assert module.calls == ("save", "load 1")


@pytest.mark.parametrize("average", [EMAWeightAveraging, lambda: StochasticWeightAveraging(1e-2)])
def test_shape_edits_under_an_average_are_refused(average):
    module = User()
    with pytest.raises(lc.CompressionError, match="keeps an average of the former shape"):
        fit(module, lc.NeuronPruning(0.4), average())
    assert module.network[0].out_features == 32


def test_lightnings_own_pruning_is_refused():
    with pytest.raises(lc.CompressionError, match="Remove ModelPruning"):
        fit(User(), lc.WeightPruning(0.4), ModelPruning("l1_unstructured"))


def test_a_compiled_lightning_module_is_refused():
    with pytest.raises(lc.CompressionError, match="Compile a part of it"):
        fit(torch.compile(User()), lc.WeightPruning(0.4))


def test_two_callbacks_of_one_class_need_names():
    with pytest.raises(RuntimeError, match="state_key"):
        trainer(lc.WeightPruning(0.4), lc.WeightPruning(0.4))


def test_a_fit_without_an_end_is_refused():
    with pytest.raises(lc.CompressionError, match="max_epochs or max_steps"):
        fit(User(), lc.WeightPruning(0.4), max_epochs=-1)


def test_max_steps_set_the_horizon():
    pruning = lc.WeightPruning(0.5)
    fit(User(), pruning, max_epochs=-1, max_steps=25)
    assert pruning.reached == pytest.approx(0.5, abs=1e-3)


class Manual(L.LightningModule):
    """Manual optimization with two optimizers and several parameter groups."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.body, self.head = nn.Sequential(nn.Linear(64, 24), nn.ReLU()), nn.Linear(24, 10)

    def forward(self, images):
        return self.head(self.body(images))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self(images), labels))
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        body = torch.optim.SGD(
            [{"params": [self.body[0].weight], "lr": 0.2}, {"params": [self.body[0].bias]}], lr=0.1, momentum=0.9
        )
        return [body, torch.optim.AdamW(self.head.parameters(), lr=1e-2)]


@pytest.mark.parametrize("pruning", [lambda: lc.WeightPruning(0.7), lambda: lc.NeuronPruning(0.5)])
def test_manual_optimization_with_two_optimizers(pruning):
    module, callback = Manual(), pruning()
    runner = fit(module, callback, max_epochs=4, validation=False)
    images, labels = digits()
    assert (module(images).argmax(1) == labels).float().mean() > 0.7
    held = {id(p) for optimizer in runner.optimizers for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in module.parameters()}
    assert callback.reached == pytest.approx(callback.final, abs=0.01)


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam", "adamw", "rmsprop"])
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_every_parameter_still_trains_after_the_cuts(optimizer, network):
    look = Look(lambda trainer, module: {n: p.detach().clone() for n, p in module.named_parameters()}, step=28)
    module = User(network, optimizer)
    fit(module, lc.NeuronPruning(0.5, schedule=lc.training.Schedule(end=0.5)), look, max_epochs=3)
    moved = {name: not torch.equal(p, look.seen[0][name]) for name, p in module.named_parameters()}
    assert all(moved.values()), moved


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_accumulation_clipping_and_mixed_precision(precision):
    pruning, neurons = lc.WeightPruning(0.8), lc.NeuronPruning(0.3)
    module = User("conv")
    fit(module, pruning, neurons, max_epochs=4, accumulate_grad_batches=3, gradient_clip_val=0.5, precision=precision)
    weights = torch.cat([p.flatten() for n, p in module.named_parameters() if p.dim() > 1])
    assert (weights == 0).float().mean() == pytest.approx(0.8, abs=1e-3)


def test_compiled_submodule_is_pruned():
    module = User()
    module.network = torch.compile(module.network, backend="eager")
    pruning = lc.WeightPruning(0.5, targets=["network.0", "network.4"])
    fit(module, pruning, max_epochs=2)
    assert pruning.reached == pytest.approx(0.5, abs=1e-3)


def test_session_is_open_only_during_a_fit():
    look = Look(lambda trainer, module: Session.find(module))
    module = User()
    fit(module, look, Replay())
    assert isinstance(look.seen[0], Session)
    assert Session.find(module) is None


def test_the_example_input_of_the_module_is_used_for_tracing():
    class Example(User):
        def __init__(self) -> None:
            super().__init__()
            self.example_input_array = torch.zeros(2, 64)

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx)

    look = Look(lambda trainer, module: Session.of(module).tracing)
    fit(Example(), look, lc.NeuronPruning(0.2))
    assert look.seen[0].module == ""
    look = Look(lambda trainer, module: Session.of(module).tracing)
    fit(User(), look, lc.NeuronPruning(0.2))
    assert look.seen[0].module == "network"


def test_validation_of_a_copy_leaves_the_fit_alone():
    from lightning_compress.training import evaluate_copy

    def look(trainer, module):
        states = (
            torch.get_rng_state(),
            {k: v.clone() for k, v in module.state_dict().items()},
            trainer.callback_metrics.copy(),
        )
        figures = evaluate_copy(trainer, module)
        assert torch.equal(states[0], torch.get_rng_state())
        assert same(states[1], dict(module.state_dict()))
        assert trainer.callback_metrics == states[2]
        assert module.training
        assert module.trainer is trainer
        return figures

    L.seed_everything(1)
    looked = Look(look)
    one = fit(User(), looked, Replay())
    L.seed_everything(1)
    two = fit(User(), Replay())
    assert 0 < looked.seen[0]["val_acc"] <= 1
    assert same(one.lightning_module.state_dict(), two.lightning_module.state_dict())


def test_modules_of_a_conv_net_survive_all_of_it_together(tmp_path):
    L.seed_everything(1)
    module = User("conv")
    runner = fit(module, *prunings(), every_epoch(tmp_path), max_epochs=4)
    fresh = lc.load_from_checkpoint(User, tmp_path / "epoch=3.ckpt")
    images, _ = digits()
    assert torch.equal(fresh.eval()(images), module.eval()(images))
    assert isinstance(module.network, ConvNet)
    validated = runner.validate(module, validation_loader(), verbose=False)
    assert validated[0]["val_acc"] > 0.5
    assert loader() is not None


@pytest.mark.parametrize("kind", ["dict", "persistent workers", "generator"])
def test_tracing_takes_no_sample_out_of_the_fit(kind):
    """The loaders deliver what they would have delivered."""

    class Seen(User):
        def training_step(self, batch, batch_idx):
            batch = batch["digits"] if kind == "dict" else batch
            if self.trainer.training:
                seen.append(batch[1].tolist())
            return super().training_step(batch, batch_idx)

    def data():
        options = {"persistent_workers": True, "num_workers": 1} if kind == "persistent workers" else {}
        options = {"generator": torch.Generator().manual_seed(3)} if kind == "generator" else options
        return {"digits": loader(**options)} if kind == "dict" else loader(**options)

    runs = []
    for callback in (lc.NeuronPruning(0.3), Replay()):
        seen = []
        L.seed_everything(1)
        fit(Seen(), callback, train=data(), max_epochs=1)
        runs.append([labels for labels in seen if len(labels) == 40])
    assert runs[0] == runs[1]
    assert len(runs[0]) == 10


class Stream(IterableDataset):
    def __iter__(self):
        return iter(loader(shuffle=False).dataset)


@pytest.mark.parametrize("length", [{"max_epochs": 10}, {"max_epochs": -1, "max_steps": 90}])
@pytest.mark.parametrize("pruning", [lambda: lc.WeightPruning(0.6), lambda: lc.NeuronPruning(0.4, criterion="apoz")])
def test_streams_without_a_length(pruning, length):
    callback = pruning()
    fit(User(), callback, train=DataLoader(Stream(), batch_size=40), **length)
    assert callback.reached == pytest.approx(callback.final, abs=0.02)


def test_a_fit_with_fewer_steps_than_cuts_is_refused():
    with pytest.raises(lc.CompressionError, match=r"needs 11 cuts of at most 20% .* fit has only 3 steps"):
        fit(User(), lc.WeightPruning(0.9, schedule="iterative"), train=loader(batch_size=400), max_epochs=3)


@pytest.mark.parametrize(
    "options",
    [
        {"fast_dev_run": True},
        {"overfit_batches": 3, "max_epochs": 8},
        {"val_check_interval": 0.25, "max_epochs": 5},
        {"check_val_every_n_epoch": 2, "max_epochs": 12},
        {"reload_dataloaders_every_n_epochs": 1, "max_epochs": 5},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_trainer_work_with_a_gate(options):
    callback = lc.NeuronPruning(0.4, recover=lc.Recovery("val_acc", tolerance=0.1, patience=3))
    fit(User(), callback, **options)
    assert callback.on_target or "fast_dev_run" in options


def test_layers_used_outside_of_the_traced_call_are_left_alone_before_anything_is_cut():
    class TwoHeads(User):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head, self.decoder = nn.Linear(64, 24), nn.Linear(24, 10), nn.Linear(24, 64)

        def forward(self, images):
            return self.head(torch.relu(self.encoder(images)))

        def training_step(self, batch, batch_idx):
            images, labels = batch
            decoded = self.decoder(torch.relu(self.encoder(images)))
            return nn.functional.cross_entropy(self(images), labels) + nn.functional.mse_loss(decoded, images)

    module = TwoHeads()
    module.network = nn.Identity()
    module.example_input_array = torch.zeros(2, 64)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(lc.CompressionError, match="encoder"):
        fit(module, lc.NeuronPruning(0.3))
    assert module.encoder.out_features == 24
    assert before.keys() == module.state_dict().keys()


def test_an_optimizer_with_a_list_of_its_own_is_refused():
    class Second(User):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(lc.CompressionError, match="LBFGS keeps a list"):
        fit(Second(), lc.NeuronPruning(0.3))


def test_layers_that_are_left_alone_stand_in_the_journal():
    module = User()
    module.network = nn.Sequential(
        nn.Linear(64, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10)
    )
    fit(module, lc.NeuronPruning(0.3))
    assert "network.0 is left alone" in lc.explain(module)
    assert module.network[0].out_features == 16
    assert module.network[3].out_features < 12


def test_callbacks_can_be_pickled_after_a_fit():
    pruning = lc.WeightPruning(0.5)
    fit(User(), pruning)
    assert pickle.loads(pickle.dumps(pruning)).reached == pruning.reached


def test_validating_another_module_does_not_start_a_callback_over():
    pruning = lc.NeuronPruning(0.3)
    module = User()
    runner = fit(module, pruning)
    runner.validate(User(), validation_loader(), verbose=False)
    width = module.network[0].out_features
    fit(module, pruning)
    assert module.network[0].out_features == width


def test_computed_weights_are_refused():
    module = User()
    module.network[0] = torch.nn.utils.parametrizations.weight_norm(module.network[0])
    with pytest.raises(lc.CompressionError, match="'network.0' is computed"):
        fit(module, lc.WeightPruning(0.5))
    fit(module, lc.WeightPruning(0.5, exclude=["network.0"]), max_epochs=2)


def test_a_network_left_in_evaluation_mode_is_told_of_and_a_frozen_part_of_it_is_not():
    module = User("conv")
    norm = next(layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d))
    norm.requires_grad_(False)
    for trains, told in ((False, False), (True, True)):
        module.eval()
        norm.requires_grad_(trains)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer(lc.WeightPruning(0.5), max_epochs=1).fit(module, loader())
        assert any("All BatchNorm layers ('network.norm', 1 in all)" in str(one.message) for one in caught) is told
