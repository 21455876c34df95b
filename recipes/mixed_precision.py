"""Bits for each layer by its sensitivity, against the same bits everywhere, at equal size.

$ python recipes/mixed_precision.py [splits]

A LeNet-5 on the digits is trained densely, the sensitivities are measured on its training pictures, an integer program
finds the best bits within the budget; then all arms are trained on with quantized weights for as long.
"""

import copy
import sys
from functools import cache

import lightning as L
import torch
from bits import OUTPUTS, SHARES
from fits import quiet

from lightning_compress.quantization import QuantizationAwareTraining, allocate_bits, sensitivity
from lightning_compress.report.arms import run_arms
from lightning_compress.zoo import Classifier, Digits

BUDGETS, EPOCHS, TUNING = (2.5, 3.0), 20, 8


def fit(classifier: Classifier, data: Digits, callbacks: list, epochs: int) -> L.Trainer:
    """A fit without a word."""
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(classifier, data)
    return trainer


@cache
def dense(split: int) -> tuple[Classifier, Digits]:
    """The network before, and its data."""
    data = Digits(batch_size=64, seed=split, shares=SHARES["digits"])
    L.seed_everything(split, verbose=False)
    classifier = Classifier("lenet_5", lr=2e-3)
    fit(classifier, data, [], EPOCHS)
    return classifier, data


def run(arm: str, mean_bits: float, split: int) -> dict[str, float]:
    """One network on one split: accuracy in per cent, and the mean bits of its weights."""
    before, data = dense(split)
    classifier = copy.deepcopy(before)
    L.seed_everything(split, verbose=False)
    if arm == "mixed":
        pictures = data.train.tensors[0][:256]
        found = sensitivity(classifier, pictures.split(64), bits=(2, 3, 4, 5, 6, 8))
        allocation = allocate_bits(found, mean_bits=mean_bits)
        bits, used = allocation.bits, allocation.mean_bits
    else:
        bits = used = int(mean_bits)
    callbacks = [] if arm == "fp32" else [QuantizationAwareTraining(bits, None, scale="lsq", edge_bits=None)]
    trainer = fit(classifier, data, callbacks, TUNING)
    accuracy = trainer.test(classifier, data, verbose=False)[0]["test_acc"]
    return {"accuracy": 100 * accuracy, "bits": 32 if arm == "fp32" else float(used)}


def main(splits: int) -> None:
    """All arms on all splits; the table."""
    quiet()
    arms = {"fp32": lambda split: run("fp32", 32, split), "2 bits": lambda split: run("uniform", 2, split)}
    arms |= {f"mixed {b:g}": lambda split, b=b: run("mixed", b, split) for b in BUDGETS}
    arms["3 bits"] = lambda split: run("uniform", 3, split)
    shares = SHARES["digits"]
    folder = OUTPUTS.parent / "mixed_precision"
    comparison = run_arms(arms, range(splits), folder, test_to_train=shares[2] / shares[0])
    print(comparison.table("accuracy", "fp32", "bits"))
    print("\nmixed 3 - 3 bits:", comparison.difference("mixed 3", "3 bits", "accuracy"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
