"""Accuracy and size at 32, 8, 4, 3, 2, ternary and binary weights, on digits and textures.

$ python recipes/bits.py digits mlp        # or: digits lenet_5, textures small_resnet

Each finished run is one file under outputs/recipes/bits; the same command goes on where it stopped. A last argument is
the number of splits (10 for digits, 5 for textures).
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning as L
import torch
from fits import quiet
from lightning.pytorch.callbacks import Callback
from torch import nn

from lightning_compress import quantization, save_compressed
from lightning_compress.quantization import QuantizationAwareTraining
from lightning_compress.report.arms import run_arms
from lightning_compress.zoo import Classifier, Digits, Textures

torch.set_num_threads(1)
OUTPUTS = Path(os.environ.get("BITS_OUTPUTS", "outputs/recipes/bits"))
START = 0.2
SHARES = {"digits": (0.5, 0.1, 0.4), "textures": (0.6, 0.2, 0.2)}
SPLITS = {"digits": 10, "textures": 5}
EPOCHS = {"mlp": 60, "lenet_5": 30, "small_resnet": 10}
FREEZE = {"mlp": 0.9, "lenet_5": 0.9, "small_resnet": None}  # of BatchNorm's statistics; chosen on splits 100 to 102
CALLBACKS: dict[str, Callable[[float | None], Callback | None]] = {
    "fp32": lambda freeze: None,
    "W8A8": lambda freeze: QuantizationAwareTraining(8, 8, start=START),
    "W4A4": lambda freeze: learned(4, freeze),
    "W3A3": lambda freeze: learned(3, freeze),
    "W2A2": lambda freeze: learned(2, freeze),
    "W2A2 observed": lambda freeze: QuantizationAwareTraining(2, 2, start=START, freeze_batch_norm=freeze),
    "ternary": lambda freeze: quantization.TernaryWeights(),
    "binary": lambda freeze: quantization.BinaryConnect(),
}


def learned(bits: int, freeze: float | None) -> QuantizationAwareTraining:
    """Weights and activations in so many bits, with learned scales."""
    return QuantizationAwareTraining(bits, bits, scale="lsq", start=START, freeze_batch_norm=freeze)


def network(name: str, classes: int) -> nn.Module | str:
    """A perceptron with BatchNorm and dropout, after BinaryConnect's; or one of the zoo's."""
    if name != "mlp":
        return name
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in ((64, 300), (300, 100)):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(100, classes))


def run(data: str, name: str, arm: str, split: int, *, part: str = "test") -> dict[str, float]:
    """One network on one split: accuracy in per cent, and bytes of its file."""
    module_data = {"digits": Digits, "textures": Textures}[data](batch_size=64, seed=split, shares=SHARES[data])
    L.seed_everything(split, verbose=False)
    classifier = Classifier(network(name, module_data.num_classes), module_data.num_classes, lr=5e-3)
    callback = CALLBACKS[arm](FREEZE[name])
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        max_epochs=EPOCHS[name],
        accelerator="cpu",
        callbacks=[] if callback is None else [callback],
        enable_model_summary=False,
        limit_val_batches=0,
        **options,
    )
    trainer.fit(classifier, module_data)
    trainer.limit_val_batches = 1.0
    evaluate = trainer.test if part == "test" else trainer.validate
    figures = evaluate(classifier, module_data, verbose=False)[0]
    with TemporaryDirectory() as folder:
        size = save_compressed(classifier, Path(folder) / "model.lcz").bytes
    return {"accuracy": 100 * figures["test_acc" if part == "test" else "val_acc"], "bytes": size}


def main(data: str, name: str, splits: int) -> None:
    """All arms on all splits; the table."""
    quiet()
    present = [arm for arm in CALLBACKS if arm not in ("ternary", "binary") or hasattr(quantization, "BinaryConnect")]
    arms = {arm: lambda split, arm=arm: run(data, name, arm, split) for arm in present}
    shares = SHARES[data]
    folder = OUTPUTS / f"{data}-{name}"
    comparison = run_arms(arms, range(splits), folder, test_to_train=shares[2] / shares[0])
    print(comparison.table("accuracy", "fp32", "bytes"))
    print("\nlearned - observed at 2 bits:", comparison.difference("W2A2", "W2A2 observed", "accuracy"))


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["digits", "mlp"]
    main(chosen[0], chosen[1], int(chosen[2]) if len(chosen) > 2 else SPLITS[chosen[0]])
