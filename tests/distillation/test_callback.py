"""Any LightningModule is distilled without an edit; teachers do not move; a step that teaches nothing is an error."""

import copy
import pickle

import lightning as L
import pytest
import torch
from distillation.distilled import Manual, Rich, accuracy, distil, trained, trained_mlp
from support import Look, User, digits, every_epoch, fit, leftovers, loader, same, validation_loader
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import lightning_compress as lc
from lightning_compress.distillation import Distillation, Teacher, TransferSet
from lightning_compress.errors import CompressionError
from lightning_compress.training import Replay


def state_of(module: nn.Module) -> dict:
    return {key: value.clone() for key, value in module.state_dict().items()}


@pytest.mark.parametrize("user", [Rich, Manual, User])
def test_a_checkpoint_is_the_students_alone_and_loads_strictly_in_its_own_class(tmp_path, user):
    module = user()
    distil(module, None, every_epoch(tmp_path))
    path = tmp_path / "epoch=1.ckpt"
    loaded = user.load_from_checkpoint(path)
    assert same(dict(loaded.state_dict()), dict(module.state_dict()))
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["state_dict"].keys() == user().state_dict().keys()
    assert checkpoint["callbacks"]["Distillation"]["adapters"] is None


@pytest.mark.parametrize("user", [Rich, Manual])
def test_the_file_is_as_large_as_without_a_teacher(tmp_path, user):
    def size(callback, folder):
        runner = fit(user(), callback, max_epochs=1)
        runner.save_checkpoint(tmp_path / folder)
        return (tmp_path / folder).stat().st_size

    assert size(Distillation(trained()), "distilled.ckpt") < size(Replay(), "plain.ckpt") + 4000


def test_hooks_metrics_and_schedules_of_the_user_work(tmp_path):
    module = Rich()
    runner, _ = distil(module, max_epochs=2)
    assert module.called.count("epoch") == 2
    assert module.called.count("batch") == 20
    assert runner.callback_metrics["val_acc"] > 0.2
    assert "train_loss" in runner.callback_metrics
    assert "training_step" not in vars(module)


@pytest.mark.parametrize("user", [Rich, Manual, User])
def test_the_student_learns_from_the_teacher_alone(user):
    """Labels that are all wrong, alpha 1: what is learnt is the teacher's."""
    images, labels = digits()
    wrong = DataLoader(TensorDataset(images[:800], (labels[:800] + 1) % 10), 40, shuffle=True)
    module = user()
    distil(module, alpha=1.0, temperature=2.0, max_epochs=8, fit_options={"train": wrong})
    assert accuracy(module) > 0.7
    assert accuracy(trained()) > 0.8
    trained().train()


def one_step(alpha, user=User, **options):
    """Gradients of the first step under plain SGD, as the change that it makes."""
    L.seed_everything(3, verbose=False)
    module = user()
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    before = state_of(module)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)
    callback = Distillation(trained(), alpha=alpha, fidelity=False, **options) if alpha is not None else Replay()
    fit(module, callback, train=loader(shuffle=False), validation=False, max_epochs=1, limit_train_batches=1)
    return {name: module.state_dict()[name] - before[name] for name, _ in module.named_parameters()}


def test_alpha_0_is_the_plain_step_and_the_loss_is_linear_in_alpha():
    plain, none, half, one = one_step(None), one_step(0.0), one_step(0.5), one_step(1.0)
    nearly = one_step(1e-6)
    for name in plain:
        torch.testing.assert_close(none[name], plain[name])
        torch.testing.assert_close(nearly[name], plain[name], atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(half[name], (none[name] + one[name]) / 2, atol=1e-6, rtol=1e-4)


def test_the_mixed_loss_is_the_papers():
    module, teacher = User(), trained()
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    images, labels = next(iter(loader(shuffle=False)))
    duplicate = copy.deepcopy(module)
    logits, targets = duplicate.network(images), copy.deepcopy(teacher).eval()(images).detach()
    soft = nn.functional.kl_div((logits / 3).log_softmax(1), (targets / 3).softmax(1), reduction="batchmean")
    expected = 0.3 * nn.functional.cross_entropy(logits, labels) + 0.7 * 9 * soft
    seen = []

    class Note(L.Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            seen.append(loss.detach().clone())

    distil(module, None, Note(), alpha=0.7, temperature=3.0, max_epochs=1,
           fit_options={"train": loader(shuffle=False), "limit_train_batches": 1})  # fmt: skip
    torch.testing.assert_close(seen[0], expected.detach())


@pytest.mark.parametrize("user", [Rich, Manual])
def test_teachers_are_bit_identical_after_the_fit_with_flags_and_gradients_as_they_were(user):
    teacher = copy.deepcopy(trained())
    teacher.network.norm.eval()
    before, flags = state_of(teacher), [part.training for part in teacher.modules()]
    distil(user(), teacher)
    assert same(state_of(teacher), before)
    assert [part.training for part in teacher.modules()] == flags
    assert all(parameter.grad is None and parameter.requires_grad for parameter in teacher.parameters())


def test_a_teacher_is_asked_in_evaluation_mode_even_if_its_parent_calls_train():
    class Parent(User):
        def __init__(self):
            super().__init__()
            self.keep = [Watched()]

        def training_step(self, batch, batch_idx):
            self.keep[0].train()
            return super().training_step(batch, batch_idx)

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.modes = copy.deepcopy(trained().network), []

        def forward(self, images):
            self.modes.append((self.training, self.network.dropout.training, torch.is_grad_enabled()))
            return self.network(images)

    module = Parent()
    before = state_of(module.keep[0])
    distil(module, module.keep[0])
    assert set(module.keep[0].modes) == {(False, False, False)}
    assert same(state_of(module.keep[0]), before)


def test_a_teacher_that_changes_during_the_fit_is_an_error():
    teacher = copy.deepcopy(trained_mlp())

    class Disturb(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            teacher[0].bias.data[0] += 1e-3

    with pytest.raises(lc.CompressionError, match="changed during the fit"):
        distil(User(), teacher, Disturb())


def test_a_teacher_that_the_students_optimizer_holds_is_refused():
    module = User()
    with pytest.raises(lc.CompressionError, match="would be trained"):
        distil(module, module.network)


@pytest.mark.parametrize("automatic", [True, False])
def test_a_step_that_runs_no_student_is_an_error(automatic):
    class Idle(User):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = automatic
            self.free = nn.Parameter(torch.zeros(()))

        def training_step(self, batch, batch_idx):
            if batch_idx == 0 and not getattr(self.trainer, "late", False):
                return self.free * 1.0
            return super().training_step(batch, batch_idx)

    with pytest.raises(lc.CompressionError, match="ran no forward"):
        distil(Idle())


def test_a_later_step_that_runs_no_student_is_an_error_too():
    class Late(User):
        def training_step(self, batch, batch_idx):
            if batch_idx < 3:
                return super().training_step(batch, batch_idx)
            return sum(parameter.square().sum() for parameter in self.parameters())

    with pytest.raises(lc.CompressionError, match="ran no forward of 'network'"):
        distil(Late())


def test_manual_optimization_without_manual_backward_is_an_error():
    class Direct(Manual):
        def training_step(self, batch, batch_idx):
            images, labels = batch
            nn.functional.cross_entropy(self(images), labels).backward()
            for optimizer in self.optimizers():
                optimizer.step()

    with pytest.raises(lc.CompressionError, match="manual_backward"):
        distil(Direct())


def test_a_step_that_is_skipped_is_skipped():
    class Skipping(User):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) if batch_idx % 2 == 0 else None

    runner, _ = distil(Skipping())
    assert runner.callback_metrics["compress/distillation_loss"] > 0


def test_several_forwards_in_a_step_are_all_distilled():
    class Crops(User):
        def training_step(self, batch, batch_idx):
            images, labels = batch
            losses = [nn.functional.cross_entropy(self.network(images * scale), labels) for scale in (1.0, 0.9)]
            with torch.no_grad():
                self.network(images)  # looks only; is not distilled
            return sum(losses)

    asked = []
    teacher = copy.deepcopy(trained_mlp())
    teacher.register_forward_hook(lambda *_: asked.append(1))
    distil(Crops(), teacher, fidelity=False, max_epochs=1, fit_options={"limit_train_batches": 3})
    assert len(asked) == 1 + 3 * 2  # the first looks whether it fits


def test_parts_called_one_by_one_need_a_name():
    class Split(Manual):
        def training_step(self, batch, batch_idx):
            images, labels = batch
            loss = nn.functional.cross_entropy(self.head(self.body(images)), labels)
            self.manual_backward(loss)

    with pytest.raises(lc.CompressionError, match="student='head'"):
        distil(Split())
    with pytest.raises(lc.CompressionError, match="Did you mean 'head'"):
        distil(Split(), student="haed")


def test_different_numbers_of_classes_are_refused_before_the_first_step():
    module = User()
    before = state_of(module)
    with pytest.raises(lc.CompressionError, match="has 7 outputs, the student 10"):
        distil(module, nn.Linear(64, 7))
    assert same(state_of(module), before)


def test_an_empty_training_set_is_an_error():
    empty = DataLoader(TensorDataset(torch.zeros(0, 64), torch.zeros(0, dtype=torch.long)), 4)
    with pytest.raises(lc.CompressionError, match="has no batch"):
        distil(User(), fit_options={"train": empty})
    with pytest.raises(lc.CompressionError, match="transfer set is empty"):
        TransferSet(torch.zeros(0, 64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"loss": "kld"}, "Did you mean 'kd'"),
        ({"pool": "mean"}, "Known: confidence"),
        ({"loss": "sigmoid_kd", "pool": "vote"}, "reads labels"),
        ({"weights": [1.0]}, "one number above 0 for each of the 2"),
        ({"weights": "best"}, "weights='best'"),
        ({"top_k": 0, "cache": "somewhere"}, "top_k=0"),
        ({"cache": "somewhere", "taps": [{"student": "network.0"}]}, "leave cache out"),
    ],
)
def test_bad_arguments_are_refused_at_once(options, message):
    with pytest.raises(lc.CompressionError, match=message):
        Distillation([nn.Linear(2, 2), nn.Linear(2, 2)], **options)


def test_nothing_stays_on_the_module_after_the_fit_or_an_error():
    for error in (None, RuntimeError):

        class Fail(L.Callback):
            def on_train_batch_end(self, trainer, *_, error=error):
                if error is not None and trainer.global_step == 5:
                    raise error

        module, teacher = User(), copy.deepcopy(trained())
        before = leftovers(module), leftovers(teacher)
        try:
            distil(module, teacher, Fail(), taps=[{"student": "network.0", "teacher": "network.stem"}])
        except RuntimeError:
            assert error is RuntimeError
        assert (leftovers(module), leftovers(teacher)) == before


def test_copies_in_mid_fit_are_plain_modules():
    look = Look(lambda _, module: (copy.deepcopy(module), pickle.loads(pickle.dumps(module))), step=5)
    distil(User(), None, look)
    for duplicate in look.seen[0]:
        assert duplicate.training_step(next(iter(loader())), 0).requires_grad
        fit(duplicate, max_epochs=1)


def test_a_second_fit_and_a_validation_work():
    module, callback = User(), Distillation(trained())
    fit(module, callback, max_epochs=1)
    runner = fit(module, callback, max_epochs=2)
    assert runner.validate(module, validation_loader(), verbose=False)


def test_what_is_logged():
    runner, _ = distil(User(), temperature={"start": 8.0, "end": 2.0}, max_epochs=2)
    found = {key.removeprefix("compress/") for key in runner.callback_metrics if key.startswith("compress/")}
    assert found == {"distillation_loss", "temperature", "alpha", "agreement", "kl_to_teacher",
                     "student_nll", "teacher_nll", "student_ece", "teacher_ece"}  # fmt: skip
    assert runner.callback_metrics["compress/temperature"].item() == pytest.approx(2.0, abs=0.4)


def test_labels_reach_a_loss_that_wants_them_and_a_batch_without_is_refused():
    distil(User(), loss="dkd", max_epochs=1)
    images, _ = digits()

    class Unlabelled(User):
        def training_step(self, batch, batch_idx):
            return self.network(batch).square().mean()

    bare = DataLoader(images[:400], 40)
    with pytest.raises(lc.CompressionError, match="needs labels"):
        distil(Unlabelled(), loss="dkd", max_epochs=1, fit_options={"train": bare})
    runner, _ = distil(Unlabelled(), alpha=1.0, max_epochs=1, fit_options={"train": bare})
    assert runner.callback_metrics["compress/agreement"] > 0.15


def test_a_transfer_set_teaches_what_the_labels_do_not():
    images, labels = digits()
    data = TensorDataset(images[:50], labels[:50])
    few = DataLoader(data, 10, sampler=RandomSampler(data, replacement=True, num_samples=2000))
    scores = []
    for alpha in (0.0, 0.9):
        L.seed_everything(1, verbose=False)
        module = User(schedule=False)
        distil(module, alpha=alpha, temperature=2.0, transfer=TransferSet(images[:1000]), max_epochs=1,
               fidelity=False, fit_options={"train": few, "validation": False})  # fmt: skip
        scores.append(accuracy(module))
    assert scores[1] > scores[0] + 0.03


def test_any_callable_is_a_loss_and_a_pool():
    seen = []

    def squares(student, teacher):
        seen.append(teacher.shape)
        return (student - teacher).square().mean()

    distil(User(), [trained(), trained_mlp()], loss=squares, pool=lambda logits, weights, T: logits[1], max_epochs=1)
    assert seen[0] == (40, 10)


def test_a_half_precision_folded_teacher_says_nearly_the_same():
    images, _ = digits()
    plain, cheap = Teacher(trained()), Teacher(trained(), fold=True, dtype="bfloat16")
    from lightning_compress.surgery import TracingInput

    answers = []
    for teacher in (plain, cheap):
        teacher.load(User)
        teacher.prepare(torch.device("cpu"), TracingInput("", (images[:8],), {}))
        answers.append(teacher.ask((images,), {}))
    assert isinstance(cheap.running.network.norm, nn.Identity)
    assert isinstance(trained().network.norm, nn.BatchNorm2d)
    assert (answers[0].argmax(1) == answers[1].argmax(1)).float().mean() > 0.98
    cheap = Teacher(trained(), fold=True, dtype="bfloat16")
    distil(User(), cheap, max_epochs=1)
    odd = Teacher(trained(), dtype="float64")  # not that of the fit's autocast
    distil(User(), odd, max_epochs=1, fit_options={"precision": "bf16-mixed", "limit_train_batches": 2})


def test_the_teacher_sees_the_inputs_as_the_student_got_them():
    """A student that works in place leaves other numbers behind; and a look without gradients asks nobody."""

    class InPlace(User):
        def forward(self, images):
            return super().forward(images.mul_(0.0))

        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                self(batch[0].clone())
            return super().training_step(batch, batch_idx)

    seen = []

    def teacher(images):
        seen.append(float(images.abs().sum()))
        return torch.zeros(len(images), 10)

    fit(InPlace(), Distillation(teacher, fidelity=False), max_epochs=1, limit_train_batches=3)
    assert len(seen) == 1 + 3  # the first call finds out whether the outputs fit
    assert min(seen[1:]) > 0


def test_a_teacher_that_works_in_place_changes_nothing_for_the_student():
    def weights(*callbacks):
        L.seed_everything(0, verbose=False)
        module = User()
        fit(module, *callbacks, max_epochs=1, limit_train_batches=4)
        return [parameter.detach().clone() for parameter in module.parameters()]

    teacher = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 10))
    taught = weights(Distillation(teacher, alpha=0.0, fidelity=False))
    assert all(torch.equal(a, b) for a, b in zip(taught, weights(Replay()), strict=True))


def test_a_forward_that_fails_and_is_caught_leaves_the_next_one_distilled():
    class Retries(User):
        def training_step(self, batch, batch_idx):
            try:
                self(batch[0].flatten(1)[:, :3])
            except RuntimeError:
                return super().training_step(batch, batch_idx)
            raise AssertionError

    asked = []

    def teacher(images):
        asked.append(images.shape)
        return torch.zeros(len(images), 10)

    distillation = Distillation(teacher, fidelity=False)
    fit(Retries(), distillation, max_epochs=1, limit_train_batches=3)
    assert asked.count(torch.Size([40, 64])) >= 3


@pytest.mark.parametrize("value", [{"alpha": lambda progress: 5.0}, {"temperature": lambda progress: 0.0}])
def test_a_function_that_leaves_its_range_is_refused(value):
    with pytest.raises(CompressionError, match="Look at the functions"):
        fit(User(), Distillation(trained(), fidelity=False, **value), max_epochs=1)
