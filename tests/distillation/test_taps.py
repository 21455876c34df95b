"""Taps in a fit: adapters are trained, kept aside, follow a shrinking student, and come off without a trace."""

import copy

import lightning as L
import pytest
import torch
from distillation.distilled import Rich, distil, trained
from support import User, digits, every_epoch, fit, same
from torch import nn

import lightning_compress as lc
from lightning_compress.distillation import Distillation, Tap
from lightning_compress.training import Replay

TAPS = {
    "hint": [Tap("network.0", "network.stem")],
    "conv": [Tap("network.branch", "network.branch", weight=0.1), Tap("network", "network", loss="pkt")],
    "vid": [Tap("network.norm", "network.norm", loss="vid")],
    "crd": [Tap("network.branch", "network.head", loss="crd", weight=0.1)],
}


def adapters_of(callback: Distillation) -> dict:
    return callback.state_dict()["adapters"]


def test_adapters_are_trained_beside_the_network_and_not_in_it(tmp_path):
    module, seen = User(), []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.append(copy.deepcopy(adapters_of(trainer.callbacks[1])["values"]))

    distil(module, None, Look(), every_epoch(tmp_path), taps=TAPS["hint"])
    weights = [step["adapters.0.channels.weight"] for step in seen]
    assert not torch.equal(weights[0], weights[-1])
    checkpoint = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    assert checkpoint["state_dict"].keys() == User().state_dict().keys()
    assert len(checkpoint["optimizer_states"][0]["param_groups"][0]["params"]) == len(list(module.parameters()))
    assert same(User.load_from_checkpoint(tmp_path / "epoch=1.ckpt").state_dict(), module.state_dict())


def test_a_hint_brings_the_features_together():
    figures = []
    for weight in (0.0, 1.0):
        L.seed_everything(2, verbose=False)
        module = User("conv")
        distil(
            module, alpha=0.9, taps=[Tap("network.branch", weight=weight)], max_epochs=4, adapter_learning_rate=1e-12
        )
        images, _ = digits()
        found = []
        for one in (module, trained()):
            one = copy.deepcopy(one).eval()
            one.network.branch.register_forward_hook(lambda m, a, output, found=found: found.append(output.detach()))
            one(images[1200:])
        figures.append((found[0] - found[1]).square().mean().item())
    assert figures[1] < 0.7 * figures[0]


@pytest.mark.parametrize("case", TAPS)
def test_taps_follow_a_student_that_shrinks_while_it_is_distilled(case):
    module = User("mlp" if case == "hint" else "conv")
    neurons = lc.NeuronPruning(0.5)
    seen = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            state = adapters_of(next(c for c in trainer.callbacks if isinstance(c, Distillation)))
            if state is not None:
                width = (pl_module.network[0] if case == "hint" else pl_module.network.stem).weight.shape[0]
                seen.append((width, {k: tuple(v.shape) for k, v in state["values"].items()}))

    distil(module, None, neurons, Look(), taps=TAPS[case], max_epochs=4)
    assert neurons.reached == pytest.approx(0.5, abs=0.02)
    if case == "hint":
        assert {shapes["adapters.0.channels.weight"][1] - width for width, shapes in seen} == {0}
        assert len({width for width, _ in seen}) > 1


def test_an_adapters_columns_and_moments_are_cut_with_the_neurons_that_they_read():
    module, kept = User(), []
    columns = {}

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            callback = next(c for c in trainer.callbacks if isinstance(c, Distillation))
            if callback._adapters is not None:
                columns["before"] = copy.deepcopy(adapters_of(callback))

        def on_train_batch_end(self, trainer, pl_module, *_):
            plan = lc.Plan.of(pl_module)
            if len(plan) and not kept:
                part = next(p for p in plan.edits[0].slices if p.tensor == "network.0.weight" and p.dim == 0)
                kept.append(part.kept)
                raise RuntimeError

    class Snap(L.Callback):
        """Right after the cut: before the step changes the adapter."""

        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            callback = next(c for c in trainer.callbacks if isinstance(c, Distillation))
            if len(lc.Plan.of(pl_module)) and "after" not in columns:
                columns["after"] = copy.deepcopy(adapters_of(callback))

    with pytest.raises(RuntimeError):
        distil(module, None, lc.NeuronPruning(0.5, schedule=lc.training.Schedule(start=1)), Look(), Snap(),
               taps=TAPS["hint"], max_epochs=4)  # fmt: skip
    before, after = columns["before"], columns["after"]
    weight, cut = (state["values"]["adapters.0.channels.weight"] for state in (before, after))
    torch.testing.assert_close(cut, weight[:, kept[0]], rtol=0, atol=0)
    moments = [state["optimizer"]["state"][0]["exp_avg"] for state in (before, after)]
    torch.testing.assert_close(moments[1], moments[0][:, kept[0]], rtol=0, atol=0)


def test_a_rolled_back_cut_brings_the_adapter_back():
    L.seed_everything(1, verbose=False)
    module = User()
    gate = lc.Recovery("val_acc", tolerance=1e-9, patience=1, mode="min")
    neurons = lc.NeuronPruning(0.6, recover=gate)
    _, callback = distil(module, None, neurons, taps=TAPS["hint"], max_epochs=5)
    assert any(entry.kind == "rollback" for entry in lc.plan.Record.of(module).journal)
    assert adapters_of(callback)["values"]["adapters.0.channels.weight"].shape[1] == module.network[0].out_features


@pytest.mark.parametrize("case", TAPS)
def test_resume_with_taps_and_cuts_is_exact(tmp_path, case):
    def callbacks():
        return [Distillation(trained(), taps=TAPS[case], temperature={"start": 6.0, "end": 2.0}), lc.NeuronPruning(0.5)]

    def user():
        return User("mlp" if case == "hint" else "conv")

    L.seed_everything(1, verbose=False)
    whole = callbacks()
    one = fit(user(), *whole, every_epoch(tmp_path), max_epochs=4)
    L.seed_everything(2, verbose=False)
    again = callbacks()
    two = fit(user(), *again, max_epochs=4, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert same(one.lightning_module.state_dict(), two.lightning_module.state_dict())
    assert same(adapters_of(whole[0]), adapters_of(again[0]))


def test_a_fit_goes_on_without_the_taps(tmp_path):
    """Nothing of the adapters is in the user's optimizer: the callback can be left out."""
    distil(Rich(), None, every_epoch(tmp_path), taps=[Tap("network.0", "network.stem")])
    runner = fit(Rich(), Replay(), ckpt_path=tmp_path / "epoch=1.ckpt", max_epochs=3)
    assert runner.current_epoch == 3


def test_a_fit_is_resumed_with_the_taps_that_it_had(tmp_path):
    tap = Tap("network.0", "network.stem")
    distil(User(), None, every_epoch(tmp_path), taps=[tap], max_epochs=1, fit_options={"limit_train_batches": 2})
    more = {"max_epochs": 2, "fit_options": {"ckpt_path": tmp_path / "epoch=0.ckpt"}}
    with pytest.raises(lc.CompressionError, match=r"adapters of other taps.*strip\(path\)"):
        distil(User(), taps=[tap, Tap("network.4", "network.head")], **more)


def test_a_tap_whose_channels_cannot_be_followed_is_an_error():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.flatten, self.head = nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 10)

        def forward(self, images):
            return self.head(self.flatten(torch.relu(self.conv(images.view(-1, 1, 8, 8)))))

    module = User()
    module.network = Flat()
    with pytest.raises(lc.CompressionError, match=r"'network\.flatten' has .* channels now"):
        distil(module, None, lc.NeuronPruning(0.3), taps=[Tap("network.flatten", "network.head")], max_epochs=4)


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        (Tap("network.fc", "network.stem"), "no tapped module 'network.fc'"),
        (Tap("network.0", "network.stam"), "Did you mean 'network.stem'"),
        (Tap("network.0", "network.stem", member=1), "there are 1 teachers"),
        (Tap("network.0", "network.stem", loss="nst"), "tap a convolution"),
    ],
)
def test_a_tap_that_cannot_work_is_refused_before_the_first_step(tap, message):
    module = User()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(lc.CompressionError, match=message):
        distil(module, taps=[tap])
    assert same(dict(module.state_dict()), dict(before))


def test_a_teacher_that_is_no_module_has_nothing_to_tap():
    with pytest.raises(lc.CompressionError, match="no layer to tap"):
        distil(User(), lambda images: images[:, :10], taps=[Tap("network.0")])
