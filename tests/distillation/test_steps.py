"""Training steps of every kind: which forwards are distilled, manual optimization, several networks, numbered data."""

import copy

import lightning as L
import pytest
import torch
from distillation.distilled import Bare, Manual, Rich, trained, trained_mlp
from support import User, digits, fit, loader, mlp, same, trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
from lightning_compress.distillation import (
    Distillation,
    DistillationModule,
    NumberedData,
    Teacher,
    build_cache,
    numbered,
)
from lightning_compress.distillation.dependence import depends
from lightning_compress.distillation.teacher import as_teachers

FEW = {"max_epochs": 1, "limit_train_batches": 2, "validation": False}


class Counted:
    """Soft targets that count how often they are compared."""

    def __init__(self):
        self.calls = 0

    def __call__(self, student, teacher):
        self.calls += 1
        return nn.functional.mse_loss(student, teacher)


# -- which forwards ---------------------------------------------------------------------------------------------------


def test_a_loss_depends_on_what_it_was_computed_from():
    network = mlp()
    one, other, third = (network(torch.randn(4, 64)) for _ in range(3))
    loss = one.log_softmax(1).mean() + sum(p.square().sum() for p in network.parameters())
    assert depends(loss, [one, other, {"logits": third, "scores": one * 1}]) == [True, False, False]
    assert depends(network(one[:, :1] * torch.ones(64)).sum(), [one, other]) == [True, False]
    assert depends(torch.zeros(()), [one]) == [False]


def test_a_forward_for_a_metric_is_not_distilled():
    class Looks(User):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train_acc", (self.network(batch[0]).argmax(1) == batch[1]).float().mean())
            return loss

    counted = Counted()
    fit(Looks(), Distillation(trained(), loss=counted), **FEW)
    assert counted.calls == 1 + 2  # the first is the trial


def test_a_loss_that_no_forward_went_into_is_distilled_all_the_same():
    class Unlabelled(User):
        def training_step(self, batch, batch_idx):
            self.network(batch[0])
            return torch.zeros((), requires_grad=True)

    module = Unlabelled()
    before = copy.deepcopy(module.state_dict())
    fit(module, Distillation(trained(), alpha=1.0), **FEW)
    assert not same(dict(module.state_dict()), dict(before))


# -- manual optimization ----------------------------------------------------------------------------------------------


class Adversarial(L.LightningModule):
    """The student's outputs are judged by a second network; no optimizer is toggled."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.student, self.judge = nn.Linear(64, 10), nn.Linear(10, 1)
        self.losses = []

    def training_step(self, batch, batch_idx):
        mine, its = self.optimizers()
        logits = self.student(batch[0])
        its.zero_grad()
        self.manual_backward(self.judge(logits.detach()).mean())
        its.step()
        mine.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(logits, batch[1]) - self.judge(logits).mean())
        self.losses.append(self.student.weight.grad.abs().sum().item())
        mine.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.student, self.judge)]


def test_of_two_losses_the_one_that_the_student_went_into_is_mixed():
    L.seed_everything(1, verbose=False)
    first = Adversarial()
    teacher, images = trained_mlp(), digits()[0][:40]
    start = copy.deepcopy(first.student)
    judge = copy.deepcopy(first.judge)
    fit(first, Distillation(teacher, student="student", alpha=1.0, temperature=2.0), train=loader(shuffle=False),
        validation=False, max_steps=2)  # fmt: skip
    logits, targets = start(images) / 2, copy.deepcopy(teacher).eval()(images).detach() / 2
    (4 * nn.functional.kl_div(logits.log_softmax(1), targets.softmax(1), reduction="batchmean")).backward()
    torch.testing.assert_close(first.losses[-1], start.weight.grad.abs().sum().item())
    assert not torch.equal(first.judge.weight, judge.weight), "its own loss has not been touched"


def test_a_part_of_a_wrapped_module_is_named():
    module = DistillationModule(Adversarial(), trained_mlp(), part="student")
    assert fit(module, **FEW).callback_metrics["compress/distillation_loss"] > 0
    with pytest.raises(lc.CompressionError, match="'student.jugde'. Did you mean 'student.judge'"):
        fit(DistillationModule(Adversarial(), trained_mlp(), part="jugde"), **FEW)


class Watches(Manual):
    """Reads gradients, groups and schedules of its optimizers; steps with a closure."""

    def training_step(self, batch, batch_idx):
        body, head = self.optimizers()
        assert self.lr_schedulers().get_last_lr()[0] > 0

        def closure():
            body.zero_grad()
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.manual_backward(loss)
            assert all(parameter.grad is not None for parameter in body.param_groups[0]["params"])
            return loss

        body.step(closure)
        assert self.head.weight.grad.norm() > 0
        for group in head.param_groups:
            group["lr"] *= 0.5
        head.step()
        head.zero_grad()

    def configure_optimizers(self):
        body, head = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.StepLR(head, 1)
        return [body, head], [schedule]


def test_a_manual_step_may_read_gradients_and_optimizers():
    module = Watches()
    runner = fit(module, Distillation(trained()), **FEW)
    assert runner.optimizers[1].param_groups[0]["lr"] == pytest.approx(1e-2 / 4), "not by the rehearsal"


# -- teachers ---------------------------------------------------------------------------------------------------------


class Speaks(nn.Module):
    """Its outputs come from a method with another name."""

    def __init__(self):
        super().__init__()
        self.network = copy.deepcopy(trained_mlp())

    def forward(self, images):
        raise AssertionError

    def logits(self, images):
        assert not self.training
        return self.network(images)


def test_a_method_of_a_module_is_treated_as_the_module():
    net, speaks = copy.deepcopy(trained_mlp()).train(), Speaks().train()
    forward, method = as_teachers([net.forward, speaks.logits])
    assert forward.source is net
    assert method.name == "Speaks.logits"
    before = copy.deepcopy(net.state_dict())
    fit(User(), Distillation([forward, method, Teacher(speaks.logits, dtype="float64")]), **FEW)
    assert same(dict(net.state_dict()), dict(before))
    assert net.training

    class Disturb(L.Callback):
        def on_train_end(self, trainer, pl_module):
            speaks.network[0].bias.data += 1

    with pytest.raises(lc.CompressionError, match=r"Speaks\.logits changed during the fit"):
        fit(User(), Disturb(), Distillation(speaks.logits), **FEW)


# -- numbered samples, named arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize("student", [Rich, lambda: DistillationModule(mlp(), trained())])
def test_validation_data_may_be_numbered_too(student):
    module = student()
    callbacks = [] if isinstance(module, DistillationModule) else [Distillation(trained())]
    runner = trainer(*callbacks, max_epochs=1, limit_train_batches=2)
    runner.fit(module, numbered(loader()), numbered(loader(1000, 1100)))
    assert {"val_acc", "compress/teacher_nll"} <= runner.callback_metrics.keys()


@pytest.mark.parametrize("whose", ["module", "data module"])
def test_what_is_done_to_batches_on_the_device_is_done_to_numbered_ones(tmp_path, whose):
    class Scales:
        def on_after_batch_transfer(self, batch, dataloader_idx):
            images, labels = batch
            return images / 255, labels

    class Module(*([Scales] if whose == "module" else []), User):
        def training_step(self, batch, batch_idx):
            assert batch[0].max() <= 1
            return super().training_step(batch, batch_idx)

    class Data(*([Scales] if whose == "data module" else []), L.LightningDataModule):
        def train_dataloader(self):
            images, labels = digits()
            return DataLoader(TensorDataset(images[:80] * 255, labels[:80]), 40)

    module, data = Module(), NumberedData(Data())
    before = set(vars(module))
    trainer(Distillation(trained(), cache=tmp_path / "cache"), max_epochs=1).fit(module, datamodule=data)
    assert set(vars(module)) - before <= {"_trainer"}


def test_a_student_that_is_called_by_name_has_a_cache(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = nn.Linear(64, 10)

        def forward(self, *, pixels):
            return self.network(pixels)

    class ByName(Bare):
        def training_step(self, batch, batch_idx):
            return self.network(pixels=batch[0]).square().mean()

    distillation = Distillation(Net(), cache=tmp_path / "cache")
    build_cache(distillation, ByName(Net()), numbered(loader()))
    fit(ByName(Net()), distillation, train=numbered(loader()), **FEW)


def test_members_are_judged_on_what_the_users_step_gives_the_student():
    """The batches are pictures, the networks read vectors."""

    class Flattens(User):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch[0].flatten(1), batch[1]), batch_idx)

        def validation_step(self, batch, batch_idx):
            super().validation_step((batch[0].flatten(1), batch[1]), batch_idx)

    images, labels = digits()
    pictures = DataLoader(TensorDataset(images[:200].view(-1, 8, 8), labels[:200]), 40)
    distillation = Distillation([trained(), trained_mlp()], weights="validation", pool="mean_probabilities")
    module = Flattens()
    trainer(distillation, max_epochs=1).fit(module, pictures, pictures)
    assert any("without" in entry.data for entry in lc.plan.Record.of(module).journal)


# -- fidelity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["per_token", "per_pixel"])
def test_fidelity_of_tokens_and_pixels(loss):
    class Several(Bare):
        def validation_step(self, batch, batch_idx):
            self.network(batch[0])

    def network():
        return nn.Sequential(nn.Linear(64, 60), nn.Unflatten(1, (4, 15) if loss == "per_token" else (15, 2, 2)))

    images, _ = digits()
    labels = torch.randint(0, 15, (80, 4) if loss == "per_token" else (80, 2, 2))
    data, teacher, module = DataLoader(TensorDataset(images[:80], labels), 40), network(), Several(network())
    runner = trainer(Distillation(teacher, loss=loss), max_epochs=1)
    runner.fit(module, data, data)
    found = {key.removeprefix("compress/"): float(value) for key, value in runner.callback_metrics.items()}
    dim = -1 if loss == "per_token" else 1
    same_guess = module.network(images[:80]).argmax(dim) == teacher(images[:80]).argmax(dim)
    assert found["agreement"] == pytest.approx(same_guess.float().mean().item(), abs=1e-6)
    assert ("student_nll" in found) == (loss == "per_pixel")
