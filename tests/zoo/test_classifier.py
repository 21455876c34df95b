"""An ordinary LightningModule: it learns real data, and its checkpoints are plain."""

import pytest
import torch
from lightning import Callback, Trainer, seed_everything
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.measure import measure
from lightning_compress.zoo import Classifier, Digits, LeNet300


def trainer(folder, epochs, **arguments):
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **arguments,
    )


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    seed_everything(0)
    model, data = Classifier("lenet_300_100"), Digits()
    fit = trainer(folder, 15)
    fit.fit(model, data)
    metrics = dict(fit.callback_metrics)
    tested = fit.test(model, data, verbose=False)[0]
    fit.save_checkpoint(folder / "last.ckpt")
    return model, metrics, tested, folder / "last.ckpt"


def test_it_learns_the_digits(fitted):
    _, metrics, tested, _ = fitted
    assert metrics["val_acc"] > 0.96
    assert tested["test_acc"] > 0.95


def test_it_logs_the_documented_names(fitted):
    _, metrics, tested, _ = fitted
    assert set(metrics) == {"train_loss", "val_loss", "val_acc"}
    assert set(tested) == {"test_acc"}


def test_logged_accuracy_is_that_of_the_predictions(fitted):
    model, metrics, _, _ = fitted
    data = Digits()
    data.setup()
    pictures, classes = data.validation.tensors
    with torch.no_grad():
        right = (model.eval()(pictures).argmax(1) == classes).float().mean()
    assert float(metrics["val_acc"]) == pytest.approx(float(right))


def test_checkpoint_loads_without_arguments_and_gives_equal_scores(fitted):
    model, _, _, path = fitted
    again = Classifier.load_from_checkpoint(path, map_location="cpu")
    pictures = torch.rand(4, 1, 8, 8)
    assert torch.equal(again.eval()(pictures), model.eval()(pictures))


def test_checkpoint_holds_weights_only_and_plain_keys(fitted):
    checkpoint = torch.load(fitted[3], weights_only=True)
    assert set(checkpoint["state_dict"]) == {f"network.{key}" for key in LeNet300().state_dict()}
    assert checkpoint["hyper_parameters"]["network"] == "lenet_300_100"


def test_measuring_inside_a_fit_changes_nothing_of_it(tmp_path):
    costs = []

    class Measures(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            costs.append(measure(pl_module, torch.zeros(1, 1, 8, 8)))

    def weights(callbacks):
        seed_everything(1)
        model = Classifier("small_resnet")
        fit = trainer(tmp_path, 1, limit_train_batches=3, callbacks=callbacks, enable_checkpointing=False)
        fit.fit(model, Digits())
        return model.state_dict()

    measured, plain = weights([Measures()]), weights([])
    assert all(torch.equal(measured[key], plain[key]) for key in plain)
    assert [cost.parameters for cost in costs] == [77_754] * 3


def test_a_module_is_left_out_of_the_hyper_parameters_and_passed_again(tmp_path):
    data = Digits()
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), optimizer="sgd", lr=0.1, schedule="constant")
    fit = trainer(tmp_path, 1)
    fit.fit(model, data)
    fit.save_checkpoint(tmp_path / "last.ckpt")
    assert "network" not in torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]
    fresh = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    again = Classifier.load_from_checkpoint(tmp_path / "last.ckpt", network=fresh)
    assert torch.equal(again.network[1].weight, model.network[1].weight)
    assert again.hparams["optimizer"] == "sgd"


def test_options_reach_a_network_given_by_name():
    model = Classifier("small_resnet", num_classes=4, network_options={"channels": (4, 8), "in_channels": 3})
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 4)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop", "sgd"])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_every_optimizer_and_schedule_takes_steps(tmp_path, optimizer, schedule):
    model = Classifier("lenet_5", optimizer=optimizer, lr=1e-3, schedule=schedule)
    before = model.network.fc2.weight.clone()
    fit = trainer(tmp_path, 2, limit_train_batches=2, limit_val_batches=1, enable_checkpointing=False)
    fit.fit(model, Digits())
    assert not torch.equal(model.network.fc2.weight, before)
    last = fit.optimizers[0].param_groups[0]["lr"]
    assert last == pytest.approx(0 if schedule == "cosine" else 1e-3, abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "lenet_300"}, "Did you mean 'lenet_300_100'"),
        ({"optimizer": "adamW"}, "Did you mean 'adam'"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"network": nn.Linear(4, 2), "network_options": {"in_features": 4}}, "Leave them out"),
    ],
)
def test_unknown_names_are_refused(arguments, message):
    with pytest.raises(CompressionError, match=message):
        Classifier(**arguments)
