"""Teachers of every kind, ensembles of them, and what each member is worth."""

import copy

import lightning as L
import pytest
import torch
from distillation.distilled import Rich, accuracy, distil, trained, trained_mlp
from sklearn.linear_model import LogisticRegression
from support import User, digits, every_epoch, fit, loader, trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
from lightning_compress import registry
from lightning_compress.distillation import Teacher, fingerprint, fit_weights, leave_one_out
from lightning_compress.distillation.bank import POOLS, TeacherBank
from lightning_compress.distillation.teacher import as_teachers
from lightning_compress.surgery import TracingInput

POOL_NAMES = registry.names(POOLS)
DISTRIBUTIONS = sorted(set(POOL_NAMES) - {"random"})


def estimator(classes=range(10)):
    images, labels = digits()
    chosen = torch.isin(labels[:800], torch.tensor(list(classes)))
    return LogisticRegression(max_iter=300).fit(images[:800][chosen].numpy(), labels[:800][chosen].numpy())


def bank(teachers, pool="mean_logits", student=10):
    made = TeacherBank(as_teachers(teachers), pool)
    made.load(User())
    images, _ = digits()
    made.prepare(torch.device("cpu"), TracingInput("", (images[:4],), {}), torch.zeros(4, student))
    return made


def answer(made, images, temperature=1.0):
    return made.pooled(made.ask((images,), {}), temperature)


@pytest.mark.parametrize("kind", ["module", "lightning", "function", "estimator", "bound method", "probabilities"])
def test_a_teacher_can_be_anything_that_can_be_asked(kind):
    source = {
        "module": trained_mlp(),
        "lightning": trained(),
        "function": lambda images: trained_mlp()(images),
        "estimator": estimator(),
        "bound method": trained_mlp().forward,
        "probabilities": Teacher(nn.Sequential(copy.deepcopy(trained_mlp()), nn.Softmax(1)), gives="probabilities"),
    }[kind]
    trained_mlp().eval()
    L.seed_everything(1, verbose=False)
    module = User(schedule=False)
    distil(module, source, alpha=0.9, temperature=2.0, max_epochs=6, fit_options={"validation": False})
    assert accuracy(module) > 0.5


def test_an_estimators_probabilities_are_what_the_student_gets():
    images, _ = digits()
    model = estimator()
    found = answer(bank(model), images[:50]).softmax(1)
    torch.testing.assert_close(found, torch.tensor(model.predict_proba(images[:50].numpy())).float(), atol=1e-4, rtol=0)


def test_a_checkpoint_is_a_teacher(tmp_path):
    fit(Rich(), every_epoch(tmp_path), max_epochs=2)
    module = Rich(hidden=16)
    distil(module, tmp_path / "epoch=1.ckpt", max_epochs=1)
    distil(User(), Teacher(tmp_path / "epoch=1.ckpt", module=Rich), max_epochs=1)
    with pytest.raises(lc.CompressionError, match=r"(?s)no checkpoint of User.*Teacher\(path, module=TheClass\)"):
        distil(User(), tmp_path / "epoch=1.ckpt", max_epochs=1)
    with pytest.raises(lc.CompressionError, match="There is no checkpoint"):
        distil(User(), tmp_path / "epoch=9.ckpt", max_epochs=1)


def test_a_checkpoint_of_a_compressed_network_is_a_teacher(tmp_path):
    fit(User(), lc.NeuronPruning(0.4), every_epoch(tmp_path), max_epochs=3)
    teacher = Teacher(str(tmp_path / "epoch=2.ckpt"))
    distil(User(), teacher, max_epochs=1)
    assert teacher.network.network[0].out_features < 32


def test_a_network_is_taught_by_a_copy_of_itself_before_it_is_pruned():
    L.seed_everything(4, verbose=False)
    module = User()
    fit(module, max_epochs=4)
    dense = copy.deepcopy(module)
    distil(module, dense, lc.NeuronPruning(0.4), lc.WeightPruning(0.5), max_epochs=4)
    assert module.network[0].out_features < dense.network[0].out_features == 32
    assert accuracy(module) > 0.5


def test_a_fingerprint_says_whether_a_teacher_is_the_same():
    one = copy.deepcopy(trained())
    assert fingerprint(one) == fingerprint(trained())
    one.network.norm.running_mean[0] += 1e-6
    assert fingerprint(one) != fingerprint(trained())
    assert fingerprint(estimator()) == fingerprint(estimator())
    with pytest.raises(lc.CompressionError, match="cannot be pickled"):
        fingerprint(lambda x: x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": 3}, "A int is no teacher"),
        ({"source": nn.Identity(), "gives": "labels"}, "one of logits, probabilities"),
        ({"source": nn.Identity(), "weight": 0.0}, "weight=0.0"),
        ({"source": nn.Identity(), "classes": [0, 1, 1]}, "two outputs mean the same class"),
    ],
)
def test_bad_teachers_are_refused(arguments, message):
    with pytest.raises(lc.CompressionError, match=message):
        Teacher(**arguments)


def test_no_teacher_is_refused():
    with pytest.raises(lc.CompressionError, match="There is no teacher"):
        distil(User(), [])


# -- classes ----------------------------------------------------------------------------------------------------------


def test_members_that_know_other_classes_complete_each_other():
    images, _ = digits()
    low, high = estimator(range(6)), estimator(range(4, 10))
    for pool in ("mean_probabilities", "mean_logits", "geometric_mean", "confidence"):
        made = bank([low, high], pool)
        logits = answer(made, images[1000:])
        assert logits.isfinite().all()
        assert logits.shape == (797, 10)
    first = made.ask((images[:3],), {})
    assert first[0].isfinite().sum(1).tolist() == [6, 6, 6]
    assert first[1].isfinite()[0].nonzero().flatten().tolist() == [4, 5, 6, 7, 8, 9]


def test_where_no_member_knows_a_class_the_known_ones_are_compared():
    module = User()
    before = copy.deepcopy(module)
    distil(module, estimator(range(8)), alpha=1.0, max_epochs=3)
    images, labels = digits()
    right = module.eval()(images).argmax(1) == labels
    assert right[labels < 8].float().mean() > right[labels >= 8].float().mean()
    assert accuracy(module) > accuracy(before)


def test_outputs_that_the_student_does_not_have_are_dropped():
    teacher = Teacher(trained(), classes=[*range(5), -1, -1, -1, -1, -1])
    images, _ = digits()
    logits = answer(bank(teacher, student=5), images[:4])
    torch.testing.assert_close(logits, copy.deepcopy(trained()).eval()(images[:4])[:, :5].detach())


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (Teacher(nn.Linear(64, 12)), "has 12 outputs, the student 10. Say which"),
        (Teacher(nn.Linear(64, 3), classes=[0, 1]), "has 3 outputs and its class map names 2"),
        (Teacher(nn.Linear(64, 2), classes=[0, 10]), "names class 10; the student has 10"),
        (Teacher(nn.Unflatten(1, (1, 64, 1, 1)), classes=[0]), "returns"),
    ],
)
def test_class_counts_that_differ_need_a_map(teacher, message):
    with pytest.raises(lc.CompressionError, match=message):
        distil(User(), teacher)


# -- pools ------------------------------------------------------------------------------------------------------------


def members(seed=0):
    return 2 * torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(seed))


WEIGHTS = torch.tensor([0.5, 0.3, 0.2])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_pools_say_what_their_definitions_say(temperature):
    logits = members()
    softened = (logits / temperature).softmax(-1)

    def pool(name):
        return (registry.resolve(name, POOLS)(logits, WEIGHTS, temperature) / temperature).softmax(-1)

    weights = WEIGHTS.view(3, 1, 1)
    torch.testing.assert_close(pool("mean_probabilities"), (weights * softened).sum(0))
    product = (softened**weights).prod(0)
    torch.testing.assert_close(pool("geometric_mean"), product / product.sum(1, keepdim=True))
    torch.testing.assert_close(pool("mean_logits"), ((weights * logits).sum(0) / temperature).softmax(-1))
    votes = torch.zeros(6, 5)
    for member, weight in enumerate(WEIGHTS):
        votes[torch.arange(6), logits[member].argmax(1)] += weight
    torch.testing.assert_close(pool("vote"), votes, atol=1e-6, rtol=1e-5)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    shares = (-entropy).exp().unsqueeze(-1) * weights
    torch.testing.assert_close(pool("confidence"), (shares * softened).sum(0) / shares.sum(0))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_pool_of_equal_members_is_the_member(name):
    logits = members()[:1].expand(3, 6, 5)
    found = (registry.resolve(name, POOLS)(logits, WEIGHTS, 2.0) / 2.0).softmax(-1)
    if name == "vote":
        assert torch.equal(found.argmax(-1), logits[0].argmax(-1))
    else:
        torch.testing.assert_close(found, (logits[0] / 2).softmax(-1))


@pytest.mark.parametrize(
    ("pool", "loss"), [*((pool, "kd") for pool in POOL_NAMES), ("vote", "reverse_kl"), ("vote", "jensen_shannon")]
)
def test_every_pool_teaches_in_a_fit(pool, loss):
    L.seed_everything(1, verbose=False)
    module = User()
    distil(module, [trained(), trained_mlp(), estimator()], pool=pool, loss=loss, alpha=0.9, max_epochs=2)
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
    assert accuracy(module) > 0.2


def test_a_random_member_is_drawn_by_the_step_and_asked_alone():
    made = bank([trained(), trained_mlp(), estimator()], "random")
    made.weights = torch.tensor([0.6, 0.4, 1e-9])
    drawn = [made.members(step)[0] for step in range(200)]
    assert drawn == [made.members(step)[0] for step in range(200)]
    assert 90 < sum(one is made.teachers[0] for one in drawn) < 150
    assert made.teachers[2] not in drawn
    assert len(made.members(0)) == 1


def test_weights_by_validation_prefer_the_member_that_knows():
    class Guess(nn.Module):
        def forward(self, images):
            return torch.zeros(len(images), 10)

    _, callback = distil(User(), [Guess(), trained()], weights="validation", pool="mean_probabilities", max_epochs=1)
    assert callback.bank.weights[1] > 0.9


def test_mixture_weights_are_those_of_greatest_likelihood():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 5, (400,), generator=generator)
    logits = torch.randn(3, 400, 5, generator=generator)
    logits[0, torch.arange(400), truth] += 1.5
    logits[1, torch.arange(400), truth] += 1.0
    weights = fit_weights(logits, truth)

    def likelihood(w):
        return (w.view(3, 1, 1) * logits.softmax(-1)).sum(0)[torch.arange(400), truth].log().mean()

    best = likelihood(weights / weights.sum())
    for _ in range(50):
        other = torch.rand(3, generator=generator)
        assert likelihood(other / other.sum()) <= best + 1e-4


def test_leave_one_out_finds_the_member_that_carries_the_ensemble():
    images, labels = digits()
    made = bank([trained(), trained_mlp(), nn.Linear(64, 10)], "mean_probabilities")
    rows = leave_one_out(made.ask((images[1000:],), {}), labels[1000:], ["conv", "mlp", "noise"])
    assert [row.without for row in rows] == ["", "conv", "mlp", "noise"]
    assert rows[1].nll > rows[0].nll > rows[3].nll
    assert rows[1].accuracy < rows[0].accuracy


@pytest.mark.parametrize("pool", ["mean_logits", "random"])
def test_a_fit_notes_what_each_member_is_worth_on_the_validation_data(pool):
    class Guess(nn.Module):
        def forward(self, images):
            return torch.zeros(len(images), 10)

    module = User()
    distil(module, [trained(), Guess(), trained_mlp()], pool=pool, max_epochs=2)
    notes = [entry for entry in lc.plan.Record.of(module).journal if "without" in entry.data]
    assert [entry.data["without"] for entry in notes] == ["", "User (0)", "Guess (1)", "Sequential (2)"]
    whole, without_first, without_guess, _ = (entry.data["nll"] for entry in notes)
    assert without_first > whole > without_guess
    alone = User()
    distil(alone, trained(), max_epochs=1)
    assert not any("without" in entry.data for entry in lc.plan.Record.of(alone).journal)


def test_fixed_weights_are_kept_over_a_resume(tmp_path):
    _, callback = distil(User(), [trained(), trained_mlp()], every_epoch(tmp_path), weights=[3, 1])
    _, again = distil(User(), [trained(), trained_mlp()], max_epochs=3,
                           fit_options={"ckpt_path": tmp_path / "epoch=1.ckpt"})  # fmt: skip
    assert callback.bank.weights.tolist() == again.bank.weights.tolist() == [0.75, 0.25]
    _, alone = distil(User(), trained(), max_epochs=3, fit_options={"ckpt_path": tmp_path / "epoch=1.ckpt"})
    assert alone.bank.weights.tolist() == [1.0]


def test_labels_that_do_not_exclude_each_other_and_values_can_be_taught():
    images, labels = digits()
    signs = torch.stack([(labels % 2 == 0), (labels > 4), (labels == 3)], 1).float()

    class Several(L.LightningModule):
        def __init__(self, loss):
            super().__init__()
            self.network, self.task = nn.Linear(64, 3), loss

        def training_step(self, batch, batch_idx):
            return self.task(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    data = DataLoader(TensorDataset(images[:400], signs[:400]), 40)
    for name, task in (("sigmoid_kd", nn.BCEWithLogitsLoss()), ("regression", nn.MSELoss())):
        teacher = Several(task)
        trainer(max_epochs=10).fit(teacher, data)
        module = Several(task)
        start = (module.network(images) - teacher.network(images)).square().mean()
        distil(module, teacher, loss=name, alpha=1.0, max_epochs=10, fit_options={"train": data, "validation": False})
        assert (module.network(images) - teacher.network(images)).square().mean() < 0.5 * start


def test_a_segmentation_network_is_taught_per_pixel():
    images, _ = digits()
    masks = (images.view(-1, 8, 8) > 0.5).long()

    class Segment(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = nn.Conv2d(1, 2, 3, padding=1)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.network(batch[0].view(-1, 1, 8, 8)), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.02)

    data = DataLoader(TensorDataset(images[:400], masks[:400]), 40)
    teacher, module = Segment(), Segment()
    trainer(max_epochs=10).fit(teacher, data)
    maps = [Teacher(teacher.network), Teacher(nn.Conv2d(1, 1, 3, padding=1), classes=[1])]
    options = {"train": data, "validation": False}
    distil(module, maps[0], loss="per_pixel", alpha=1.0, max_epochs=10, fit_options=options)
    pictures = images[1000:].view(-1, 1, 8, 8)
    same = module.network(pictures).argmax(1) == teacher.network(pictures).argmax(1)
    assert same.float().mean() > 0.9
    distil(module, maps, loss="per_pixel", max_epochs=1, fit_options=options)


def test_the_validation_data_are_needed_for_weights_by_validation():
    with pytest.raises(lc.CompressionError, match="needs validation batches"):
        distil(User(), [trained(), trained_mlp()], weights="validation",
               fit_options={"validation": False, "train": loader()})  # fmt: skip
