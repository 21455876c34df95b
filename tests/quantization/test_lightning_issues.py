"""The issues that ended Lightning's own QuantizationAwareTraining, each as a test that is green here."""

import copy
import pickle

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelPruning
from support import User, every_epoch, fit, loader, same, trainer, validation_loader
from torch import nn

import lightning_compress as lc
from lightning_compress.quantization import QuantizationAwareTraining


class TwoInputs(User):
    """A forward with several inputs, by place and by name; layers called by name."""

    def __init__(self):
        super().__init__("conv")
        self.left, self.right = nn.Linear(64, 16), nn.Linear(64, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, a, b, *, scale=1.0, log_softmax=False):
        scores = self.head(input=torch.relu(self.left(a) + scale * self.right(input=b)))
        return scores.log_softmax(1) if log_softmax else scores

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.nll_loss(self(images, b=images.flip(1), scale=0.5, log_softmax=True), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val_acc", (self(a=images, b=images.flip(1)).argmax(1) == labels).float().mean())


def test_16609_a_fit_runs_on_the_present_torch():
    module = User("conv")
    runner = fit(module, QuantizationAwareTraining(), max_epochs=3)
    assert runner.callback_metrics["val_acc"] > 0.6
    codes = module.network.branch.weight / module.network.branch.weight.abs().amax((1, 2, 3), keepdim=True) * 127
    assert torch.allclose(codes, codes.round(), atol=1e-3)


def test_15862_forward_takes_keyword_arguments():
    module, quantization = TwoInputs(), QuantizationAwareTraining(4, 4)
    fit(module, quantization, max_epochs=2)
    places = quantization.quantizers["activations"]
    assert {"left:input", "right:input", "head:input"} <= set(places)
    assert all(places[name]["ready"] for name in ("left:input", "right:input", "head:input"))


def test_7926_models_with_several_inputs_are_quantized():
    module = TwoInputs()
    looked = []
    module.right.register_forward_hook(lambda layer, args, output: looked.append(layer.weight.unique().numel()))
    fit(module, QuantizationAwareTraining(2, 8, edge_bits=None, granularity="tensor"), max_epochs=1)
    checked_before = 2  # batches of the sanity check
    assert len(looked) > checked_before
    assert max(looked[checked_before:]) <= 3


def test_12896_test_with_a_checkpoint_path_works_after_the_fit(tmp_path):
    module = User("conv")
    checkpoint = every_epoch(tmp_path, monitor="val_acc", mode="max")
    runner = fit(module, QuantizationAwareTraining(3, 3), checkpoint, max_epochs=3)
    path = checkpoint.best_model_path
    same_module = runner.test(module, validation_loader(), ckpt_path=path, verbose=False)[0]["test_acc"]
    fresh = trainer(QuantizationAwareTraining(3, 3))
    on_fresh = fresh.test(User("conv"), validation_loader(), ckpt_path=path, verbose=False)[0]["test_acc"]
    assert same_module == on_fresh == pytest.approx(checkpoint.best_model_score.item())


@pytest.mark.parametrize("first", ["prune", "quantize"])
@pytest.mark.parametrize("whose", ["ours", "lightning"])
def test_11047_pruning_and_quantization_in_one_run(first, whose):
    def prune():
        if whose == "ours":
            return lc.WeightPruning(0.8)
        return ModelPruning(
            "l1_unstructured", amount=0.5, use_lottery_ticket_hypothesis=False, parameter_names=["weight"]
        )

    torch.manual_seed(0)
    module = User()
    callbacks = [prune(), QuantizationAwareTraining(4, 4)]
    runner = fit(module, *(callbacks if first == "prune" else callbacks[::-1]), max_epochs=4)
    weights = [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros / sum(weight.numel() for weight in weights) >= 0.8
    assert runner.callback_metrics["val_acc"] > 0.2


def test_7552_nothing_is_converted_unless_asked_and_the_module_stays_an_ordinary_one():
    """Conversion is a choice; afterwards the module can be trained, copied, pickled, scripted and exported."""
    module = User("conv")
    keys = list(module.state_dict())
    fit(module, QuantizationAwareTraining(finalize=False), max_epochs=1)
    assert module.network.branch.weight.unique().numel() > 300, "the real-valued weights"
    assert list(module.state_dict()) == keys
    images = loader().dataset.tensors[0][:4]
    expected = module.eval()(images)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(images), expected)
    scripted = torch.jit.trace(module.network, images)
    assert torch.allclose(scripted(images), expected)
    exported = torch.export.export(module.network, (images,)).module()
    assert torch.allclose(exported(images), expected)
    fit(module, max_epochs=1)


@pytest.mark.parametrize("scale", ["observed", "lsq"])
def test_6457_a_fit_resumes_in_mid_training(tmp_path, scale):
    L.seed_everything(1)
    whole = fit(User("conv"), QuantizationAwareTraining(4, 4, scale=scale), every_epoch(tmp_path), max_epochs=4)
    L.seed_everything(2)
    resumed = fit(
        User("conv"), QuantizationAwareTraining(4, 4, scale=scale), max_epochs=4, ckpt_path=tmp_path / "epoch=1.ckpt"
    )
    assert same(whole.lightning_module.state_dict(), resumed.lightning_module.state_dict())
