"""Distillation beside pruning, accumulation, mixed precision and interruptions."""

import lightning as L
import pytest
import torch
from distillation.distilled import Manual, Rich, accuracy, distil, trained, trained_mlp
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision
from support import User, digits, every_epoch, fit, loader, same

import lightning_compress as lc
from lightning_compress.distillation import Distillation, Tap, TransferSet

OPTIONS = {
    "plain": {},
    "schedules": {"temperature": {"start": 8.0, "end": 2.0, "shape": "cosine"}, "alpha": {"start": 0.9, "end": 0.2}},
    "random": {"teachers": "several", "pool": "random"},
    "validation": {"teachers": "several", "pool": "mean_probabilities", "weights": "validation"},
    "taps": {"taps": [Tap("network.0", "network.stem")]},
    "transfer": {"transfer": "mixup"},
}


def distillation(case="plain"):
    options = dict(OPTIONS[case])
    teachers = [trained(), trained_mlp()] if options.pop("teachers", None) else trained()
    if options.get("transfer"):
        options["transfer"] = TransferSet(digits()[0][:600], 32, mixup=0.4)
    return Distillation(teachers, **options)


@pytest.mark.parametrize("case", OPTIONS)
def test_resumed_fit_equals_uninterrupted_fit(tmp_path, case):
    L.seed_everything(1, verbose=False)
    whole = fit(User(), distillation(case), every_epoch(tmp_path), max_epochs=4)
    L.seed_everything(2, verbose=False)
    resumed = fit(User(), distillation(case), max_epochs=4, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert same(dict(whole.lightning_module.state_dict()), dict(resumed.lightning_module.state_dict()))


@pytest.mark.parametrize("case", ["taps", "transfer", "random"])
def test_resume_in_mid_epoch_is_exact(tmp_path, case):
    L.seed_everything(1, verbose=False)
    checkpoint = every_epoch(tmp_path, every_n_train_steps=1)
    checkpoint.filename = "{step}"
    whole = fit(User(), distillation(case), checkpoint, max_epochs=2)
    L.seed_everything(2, verbose=False)
    resumed = fit(User(), distillation(case), max_epochs=2, ckpt_path=tmp_path / "step=13.ckpt")
    assert same(dict(whole.lightning_module.state_dict()), dict(resumed.lightning_module.state_dict()))


@pytest.mark.parametrize("user", [Rich, Manual])
def test_other_users_resume_exactly_too(tmp_path, user):
    L.seed_everything(1, verbose=False)
    whole = fit(user(), distillation(), every_epoch(tmp_path), max_epochs=4)
    L.seed_everything(2, verbose=False)
    resumed = fit(user(), distillation(), max_epochs=4, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert same(dict(whole.lightning_module.state_dict()), dict(resumed.lightning_module.state_dict()))


def test_weights_and_neurons_are_pruned_while_the_network_is_distilled_and_all_of_it_resumes(tmp_path):
    def callbacks():
        return [
            Distillation(trained(), taps=[Tap("network.0", "network.stem")]),
            lc.NeuronPruning(0.4),
            lc.WeightPruning(0.6, recover=lc.Recovery("val_acc", tolerance=0.3, patience=1)),
        ]

    L.seed_everything(1, verbose=False)
    whole = fit(User(), *callbacks(), every_epoch(tmp_path), max_epochs=6)
    L.seed_everything(2, verbose=False)
    resumed = fit(User(), *callbacks(), max_epochs=6, ckpt_path=tmp_path / "epoch=2.ckpt")
    one, two = whole.lightning_module, resumed.lightning_module
    assert same(dict(one.state_dict()), dict(two.state_dict()))
    assert lc.Plan.of(one) == lc.Plan.of(two)
    assert one.network[0].out_features < 32
    loaded = lc.load_from_checkpoint(User, tmp_path / "epoch=5.ckpt")
    images, _ = digits()
    assert torch.equal(loaded.eval()(images), one.eval()(images))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("user", [User, Manual])
def test_precisions(precision, user):
    module = user()
    taps = [Tap("network.0", "network.stem")] if user is User else []
    distil(module, alpha=0.8, taps=taps, max_epochs=4, fit_options={"precision": precision})
    assert accuracy(module.float()) > 0.4


class Scales(torch.amp.GradScaler):
    """Counts the steps that it skips."""

    skipped = 0

    def step(self, optimizer, *args, **kwargs):
        before = optimizer.param_groups[0]["params"][0].detach().clone()
        result = super().step(optimizer, *args, **kwargs)
        self.skipped += torch.equal(before, optimizer.param_groups[0]["params"][0])
        return result


def half_precision(scale):
    """Lightning's mixed half precision as on a GPU; the processor has a gradient scaler too."""
    scaler = Scales("cpu", init_scale=scale, growth_interval=10_000)
    return scaler, {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


def test_half_precision_with_a_gradient_scaler():
    module, teacher = User(), trained()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    scaler, options = half_precision(2.0**10)
    _, callback = distil(module, teacher, alpha=0.8, taps=[Tap("network.0", "network.stem")], max_epochs=4,
                         fit_options=options)  # fmt: skip
    assert scaler.skipped == 0
    assert accuracy(module) > 0.4
    assert same(dict(teacher.state_dict()), before)
    assert all(torch.isfinite(value).all() for value in callback.state_dict()["adapters"]["values"].values())


def adapters_after(options, **trainer):
    L.seed_everything(1, verbose=False)
    module = User(schedule=False)
    _, callback = distil(module, alpha=0.8, taps=[Tap("network.0", "network.stem")], fidelity=False,
                         fit_options={"train": loader(shuffle=False), **options}, **trainer)  # fmt: skip
    return callback.state_dict()["adapters"]["values"]


def test_adapters_do_not_see_the_gradient_scale():
    one, two = (adapters_after(half_precision(scale)[1], max_epochs=1) for scale in (1.0, 2.0**9))
    start = adapters_after({"limit_train_batches": 1}, max_epochs=1)
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=3e-3, rtol=0.05)
        assert (one[name] - start[name]).abs().max() > 5e-3, "they have moved"


def test_after_a_step_that_the_scaler_skipped_the_adapters_go_on_with_clean_gradients():
    """At this scale the first gradients overflow; the scaler halves it until they do not."""
    scaler, options = half_precision(2.0**40)
    values = adapters_after(options, max_epochs=4)
    assert 0 < scaler.skipped < 30
    fresh = adapters_after({"limit_train_batches": 1}, max_epochs=1)
    assert all(torch.isfinite(value).all() for value in values.values())
    assert any((values[name] - fresh[name]).abs().max() > 5e-3 for name in values)


def test_accumulated_batches_are_distilled_like_one_large_one():
    def gradients(batch_size, accumulate):
        L.seed_everything(1, verbose=False)
        module = User(schedule=False)
        for part in module.network:
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        module.network[1] = torch.nn.Identity()
        module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)
        distil(module, fidelity=False, max_epochs=1, taps=[Tap("network.0", "network.stem")],
               fit_options={"train": loader(0, 80, batch_size=batch_size, shuffle=False), "validation": False,
                            "accumulate_grad_batches": accumulate})  # fmt: skip
        return module.state_dict()

    one, two = gradients(80, 1), gradients(40, 2)
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=1e-4)


def test_accumulation_clipping_and_pruning_together():
    module = User("conv")
    pruning = lc.WeightPruning(0.7)
    distil(module, None, pruning, taps=[Tap("network.branch")], max_epochs=4,
           fit_options={"accumulate_grad_batches": 3, "gradient_clip_val": 0.5, "precision": "bf16-mixed"})  # fmt: skip
    assert pruning.reached == pytest.approx(0.7, abs=1e-3)


def test_an_average_of_the_weights_is_distilled_too():
    runner, _ = distil(User(), None, EMAWeightAveraging(), max_epochs=2)
    assert runner.callback_metrics["compress/distillation_loss"] > 0


def test_two_distillations_in_one_fit():
    callbacks = [Distillation(trained(), alpha=0.5, name="a"), Distillation(trained_mlp(), alpha=0.5, name="b")]
    module = User()
    runner = fit(module, *callbacks, max_epochs=2)
    assert {"compress/distillation_loss_a", "compress/distillation_loss_b"} <= runner.callback_metrics.keys()
    assert "training_step" not in vars(module)
