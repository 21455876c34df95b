"""One bit a weight: does it cost accuracy? BinaryConnect's Table 1 in spirit, with its successors.

Learning rates are chosen for each arm by mean validation accuracy over three seeds; the chosen ones run on ten.

$ python recipes/binary_connect.py
"""

from collections.abc import Callable
from statistics import fmean

from digits_fits import OUTPUTS, TEST_TO_TRAIN, digits, figures, fresh, train
from lightning.pytorch.callbacks import Callback

from lightning_compress.quantization import BinaryConnect, TernaryWeights
from lightning_compress.report.arms import run_arms

EPOCHS, SCREEN, SEEDS = 60, 3, 10
RATES = (1e-3, 3e-3, 1e-2)
FOLDER = OUTPUTS / "binary_connect"
ARMS: dict[str, Callable[[], list[Callback]]] = {
    "no regulariser": lambda: [],
    "BinaryConnect, deterministic": lambda: [BinaryConnect()],
    "BinaryConnect, stochastic": lambda: [BinaryConnect("stochastic")],
    "BWN": lambda: [BinaryConnect(scale="bwn")],
    "TWN": lambda: [TernaryWeights("twn")],
    "TTQ": lambda: [TernaryWeights("ttq")],
}


def run(arm: str, rate: float, seed: int) -> dict[str, float]:
    """One network on one split."""
    data, module = digits(seed), fresh(seed, rate)
    train(module, data, EPOCHS, *ARMS[arm]())
    return figures(module, data)


def choose(arm: str) -> float:
    """The learning rate of the best mean validation accuracy over the first seeds."""
    tried = {f"{arm}, {rate:g}": lambda seed, rate=rate: run(arm, rate, seed) for rate in RATES}
    comparison = run_arms(tried, range(SCREEN), FOLDER, test_to_train=TEST_TO_TRAIN)
    return max(RATES, key=lambda rate: fmean(comparison.values(f"{arm}, {rate:g}", "validation")))


if __name__ == "__main__":
    chosen = {arm: choose(arm) for arm in ARMS}
    arms = {f"{arm}, {rate:g}": lambda seed, arm=arm, rate=rate: run(arm, rate, seed) for arm, rate in chosen.items()}
    comparison = run_arms(arms, range(SEEDS), FOLDER, test_to_train=TEST_TO_TRAIN)
    print(comparison.table("accuracy", next(iter(arms)), "validation"))
