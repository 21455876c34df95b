"""What a user gets wrong is said before the first step, with the way out; and what is easily meant is taken."""

import copy
from functools import partial

import lightning as L
import pytest
import torch
from distillation.distilled import Bare, trained
from support import User, digits, fit, mlp, same
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
from lightning_compress import registry
from lightning_compress.distillation import (
    Distillation,
    DistillationModule,
    NumberedData,
    Tap,
    Teacher,
    TransferSet,
    fit_class_bias,
    fit_weights,
    numbered,
)
from lightning_compress.distillation.callback import LOSSES
from lightning_compress.distillation.output_shapes import refuse_shape


class Named:
    """A model of scikit-learn whose classes have names."""

    classes_ = ("cat", "dog", "owl")

    def predict_proba(self, inputs):
        return torch.tensor([[0.7, 0.2, 0.1]]).expand(len(inputs), 3).numpy()


def one_step(module, *callbacks, inputs=None, labels=None):
    images, numbers = digits()
    data = TensorDataset(images[:8] if inputs is None else inputs, numbers[:8] if labels is None else labels)
    return fit(module, *callbacks, train=DataLoader(data, 4), validation=False, max_steps=1)


# -- outputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "shape", "message"),
    [
        ("kd", (8,), 'loss="sigmoid_kd".*loss="regression"'),
        ("dkd", (8, 1), 'loss="sigmoid_kd".*loss="regression"'),
        ("dist", (8, 5, 4, 4), 'loss="per_pixel"'),
        ("jensen_shannon", (8, 7, 5), 'loss="per_token"'),
        ("per_pixel", (8, 5), 'Use loss="kd"'),
        ("per_pixel", (8, 1, 4, 4), 'loss="sigmoid_kd"'),
        ("per_token", (8, 5), 'Use loss="kd"'),
    ],
)
def test_outputs_of_which_a_loss_would_read_the_wrong_dimension_are_refused(loss, shape, message):
    with pytest.raises(lc.CompressionError, match=f"(?s)loss {loss} reads .*{message}"):
        refuse_shape(partial(registry.resolve(loss, LOSSES)), shape)


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        ("kd", (8, 2)),
        ("per_token", (8, 7, 5)),
        ("per_pixel", (8, 5, 4, 4)),
        *[("sigmoid_kd", shape) for shape in ((8,), (8, 1), (8, 5))],
        *[("regression", shape) for shape in ((8,), (8, 1), (8, 5, 4))],
        (nn.MSELoss(), (8, 1)),
    ],
)
def test_outputs_that_a_loss_is_made_for_are_taught(loss, shape):
    def network():
        return nn.Sequential(nn.Linear(64, torch.Size(shape[1:]).numel()), nn.Unflatten(1, shape[1:] or (1,)))

    student, teacher = (nn.Sequential(network(), *([] if shape[1:] else [nn.Flatten(0)])) for _ in range(2))
    module = Bare(student)
    before = copy.deepcopy(module.state_dict())
    one_step(module, Distillation(teacher, loss=loss, alpha=1.0))
    assert not same(dict(module.state_dict()), dict(before))


def test_one_output_and_soft_targets_do_not_go_together_in_a_fit():
    with pytest.raises(lc.CompressionError, match=r"the student returns \(4, 1\)"):
        one_step(Bare(nn.Linear(64, 1)), Distillation(nn.Linear(64, 1)))


def test_a_pool_of_distributions_is_refused_where_a_loss_of_the_user_compares_values():
    with pytest.raises(lc.CompressionError, match=r"pool='vote' .* outputs \(4, 1\)"):
        one_step(Bare(nn.Linear(64, 1)), Distillation([nn.Linear(64, 1)] * 2, loss=nn.MSELoss(), pool="vote"))


def test_a_teacher_of_another_layout_is_refused():
    with pytest.raises(lc.CompressionError, match=r"returns \(4, 1\), the student \(4,\)"):
        flat = nn.Sequential(nn.Linear(64, 1), nn.Flatten(0))
        one_step(Bare(flat), Distillation(nn.Linear(64, 1), loss="regression"))


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": "x"}, "alpha='x' is no number"),
        ({"temperature": {"start": 8.0, "ende": 2.0}}, "A Ramp has no 'ende'. Did you mean 'end'"),
        ({"temperature": {"start": 8.0}}, "A Ramp needs end"),
        ({"taps": "network.0"}, r"'network.0' is no Tap.*Tap\(student="),
        ({"taps": [{"studnet": "network.0"}]}, "A Tap has no 'studnet'. Did you mean 'student'"),
        ({"taps": [{"teacher": "network.0"}]}, "A Tap needs student"),
        ({"top_k": 3}, "top_k=3, cache=None"),
        ({"adapter_learning_rate": -0.1}, "adapter_learning_rate=-0.1"),
        ({"adapter_learning_rate": "fast"}, "adapter_learning_rate='fast' is no number"),
        ({"transfer": torch.zeros(4, 64)}, r"TransferSet\(inputs"),
        ({"weights": 3}, "one number above 0"),
        ({"weights": ["a", "b"]}, "one number above 0"),
        ({"cache": 5}, "cache=5"),
        ({"cache": "here", "top_k": 2.5}, "top_k=2.5"),
        ({"cache": "here", "top_k": 2, "loss": "sigmoid_kd"}, "the loss reads labels"),
        ({"taps": [{"student": 0}]}, "0 is no name of a layer"),
        ({"taps": [{"student": "fc", "weight": "a"}]}, "weight='a'"),
        ({"taps": [{"student": "fc", "loss": "hnt"}]}, "Did you mean 'hint'"),
    ],
)
def test_wrong_arguments_are_refused_at_once(options, message):
    with pytest.raises(lc.CompressionError, match=message):
        Distillation([nn.Linear(2, 2), nn.Linear(2, 2)], **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": nn.Linear}, "The class Linear is no teacher"),
        ({"dtype": "bf16"}, '"bfloat16"'),
        ({"dtype": torch.int8}, "floating-point type"),
        ({"device": "gpu"}, '"cuda:0"'),
        ({"classes": [-1, -1]}, "the student has none of these"),
        ({"classes": [0, -2, 1]}, "-2 is no class"),
        ({"classes": ["0", "1"]}, "'0' is no class"),
        ({"classes": {"cat": 0}}, "only a model with classes_"),
        ({"source": Named()}, r"mean cat, dog, owl.*classes=\{cat: 0"),
        ({"source": Named(), "classes": {"bird": 0}}, "no class 'bird'"),
    ],
)
def test_wrong_teachers_are_refused_at_once(arguments, message):
    with pytest.raises(lc.CompressionError, match=message):
        Teacher(**{"source": nn.Identity(), **arguments})


def test_one_tap_needs_no_list():
    assert Distillation(nn.Identity(), taps=Tap("fc")).engine.taps == (Tap("fc"),)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (range(10), "sample 0 is of type int"),
        ([{"x": torch.zeros(3)}], "sample 0 is of type dict"),
        (DataLoader(TensorDataset(torch.zeros(4, 3))), "loader.dataset"),
    ],
)
def test_transfer_sets_of_anything_but_tensors_are_refused(inputs, message):
    with pytest.raises(lc.CompressionError, match=message):
        TransferSet(inputs)
    with pytest.raises(lc.CompressionError, match="nothing between them"):
        TransferSet(torch.zeros(4, 3, dtype=torch.long), mixup=1.0)


def test_data_of_another_kind_are_refused():
    with pytest.raises(lc.CompressionError, match="takes a DataLoader, not a list"):
        numbered([torch.zeros(3)])
    with pytest.raises(lc.CompressionError, match=r"numbered\(loader\)"):
        NumberedData(DataLoader(TensorDataset(torch.zeros(4, 3))))
    with pytest.raises(lc.CompressionError, match="no class 7 among 3"):
        fit_class_bias(torch.zeros(4, 3), torch.zeros(4), [7])
    with pytest.raises(lc.CompressionError, match="4 samples have logits and 3 have labels"):
        fit_weights(torch.zeros(2, 4, 3), torch.zeros(3))


# -- before the first step --------------------------------------------------------------------------------------------


def refused(message, module, teachers=None, **options):
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(lc.CompressionError, match=message):
        one_step(module, Distillation(trained() if teachers is None else teachers, **options))
    assert same(dict(module.state_dict()), dict(before))


def test_a_loss_that_is_not_one_number_is_refused():
    class Vector(User):
        def training_step(self, batch, batch_idx):
            return self.network(batch[0]).square().mean(dim=1)

    refused(r"loss of shape \(4,\).*loss\.mean\(\)", Vector())
    refused("returns (4, 10), not one number".replace("(", r"\(").replace(")", r"\)"), User(),
            loss=lambda student, teacher: student - teacher)  # fmt: skip
    refused("fails on outputs", User(), loss=lambda student, teacher: student @ teacher)


def test_a_teacher_that_wants_other_inputs_is_refused():
    refused(r"gets what the student's 'network' gets, \(4, 64\), and fails", User(), nn.Linear(3, 10))
    refused("and fails", User(), lambda images, mask: images)


def test_a_teacher_without_sensible_numbers_is_refused():
    refused("meta device", User(), mlp().to("meta"))
    refused("not finite", User(), lambda images: torch.full((len(images), 10), torch.nan))


def test_a_schedule_that_gives_no_number_is_refused():
    refused("gave 'warm' at 0", User(), temperature=lambda progress: "warm")


def test_a_device_that_is_not_there_is_refused():
    refused("cannot be put on cuda:77", User(), Teacher(trained(), device="cuda:77"))


def test_a_transfer_set_that_the_student_cannot_take_is_refused():
    refused(r"cannot take the transfer set's samples, \(2, 3\)", User(), transfer=TransferSet(torch.zeros(2, 3)))


def test_labels_that_a_transfer_set_does_not_have_are_missed_before_the_first_step():
    refused("dkd needs labels", User(), loss="dkd", transfer=TransferSet(torch.zeros(2, 64)))


def test_names_of_classes_become_numbers_by_a_mapping():
    module = Bare(nn.Linear(64, 3))
    teacher = Teacher(Named(), classes={"owl": 0, "cat": 2})
    assert teacher.classes == [2, -1, 0]
    one_step(module, Distillation(teacher))


# -- the module -------------------------------------------------------------------------------------------------------


def test_a_function_is_no_student():
    with pytest.raises(lc.CompressionError, match="A function has no parameters to train"):
        DistillationModule(lambda images: images, trained())
    with pytest.raises(lc.CompressionError, match="optimizer='adam'"):
        DistillationModule(mlp(), trained(), optimizer="adam")


def test_batches_of_three_are_refused_by_the_built_in_step():
    images, labels = digits()
    data = DataLoader(TensorDataset(images[:8], images[:8], labels[:8]), 4)
    with pytest.raises(lc.CompressionError, match="this one is 3 entries"):
        fit(DistillationModule(mlp(), trained()), train=data, validation=False, max_steps=1)


def test_a_plain_student_is_tested_and_predicts():
    images, labels = digits()
    module = DistillationModule(mlp(), trained())
    runner = one_step(module)
    pairs = DataLoader(TensorDataset(images[:8], labels[:8]), 4)
    assert runner.test(module, pairs, verbose=False)[0].keys() == {"test_loss", "test_acc"}
    (found, _), (again, _) = (runner.predict(module, data) for data in (pairs, DataLoader(images[:8], 4)))
    torch.testing.assert_close(found, module.student.eval()(images[:4]))
    assert torch.equal(found, again)


def test_steps_that_a_lightning_module_does_not_have_are_not_made_up_for_it():
    wrapped = DistillationModule(Bare(nn.Linear(64, 10)), trained())
    runner = fit(wrapped, max_steps=1)
    assert "val_loss" not in runner.callback_metrics
    with pytest.raises(L.pytorch.utilities.exceptions.MisconfigurationException, match="test_step"):
        runner.test(wrapped, DataLoader(digits()[0][:4]), verbose=False)


def test_a_second_distillation_beside_the_modules_own_is_not_dropped_silently():
    with pytest.raises(lc.CompressionError, match="would drop it"):
        one_step(DistillationModule(mlp(), trained()), Distillation(trained(), name="other"))
