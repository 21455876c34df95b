"""What does it cost to prune too much at once? One shot, iterative and gated, to the same share in the same epochs.

One shot comes at a third of the fit, which leaves it the most time to recover of all; the gate waits for the accuracy
on the validation part after each cut. A gated fit that has not come as far as asked says so under "zeros". Number of
splits as argument.

$ python recipes/too_much_at_once.py 10
"""

import logging
import sys
import warnings

import lightning as L
from digits_fits import OUTPUTS, TEST_TO_TRAIN, digits, figures

from lightning_compress.pruning import WeightPruning
from lightning_compress.report.arms import run_arms
from lightning_compress.training import Recovery, Schedule
from lightning_compress.zoo import Classifier

EPOCHS, SPARSITY, RATE = 60, 0.98, 2e-3
PRUNINGS = {
    "dense": lambda: None,
    "one shot": lambda: WeightPruning(SPARSITY, schedule=Schedule("one_shot", start=1 / 3), max_step=1.0),
    "iterative": lambda: WeightPruning(SPARSITY, schedule=Schedule("iterative", start=1 / 3, end=0.75)),
    "gated": lambda: WeightPruning(
        SPARSITY,
        schedule=Schedule("iterative", start=1 / 3, end=0.75),
        recover=Recovery("val_acc", tolerance=0.006, patience=4),
    ),
}


def run(name: str, seed: int) -> dict[str, float]:
    """One fit from the weights that belong to the seed; all validate after each epoch."""
    data, pruning = digits(seed), PRUNINGS[name]()
    L.seed_everything(seed, verbose=False)
    module = Classifier("lenet_300_100", lr=RATE)
    for logger in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    options = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[] if pruning is None else [pruning], **options)
    trainer.fit(module, train_dataloaders=data.train_dataloader(), val_dataloaders=data.val_dataloader())
    return {**figures(module, data), "zeros": 0.0 if pruning is None else 100 * pruning.reached}


if __name__ == "__main__":
    splits = range(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    arms = {name: lambda seed, name=name: run(name, seed) for name in PRUNINGS}
    comparison = run_arms(arms, splits, OUTPUTS / "too_much_at_once", test_to_train=TEST_TO_TRAIN)
    print(comparison.table("accuracy", "one shot", "validation", "zeros"))
