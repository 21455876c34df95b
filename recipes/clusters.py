"""How many shared values, and where do they begin? Deep Compression's figure on initialisation, on a pruned network.

One pruned network a seed; each arm clusters it and trains the shared values for a few epochs. "at once" is the accuracy
before that training.

$ python recipes/clusters.py
"""

from statistics import fmean

import torch
from digits_fits import OUTPUTS, TEST_TO_TRAIN, accuracy, digits, figures, fresh, train

from lightning_compress.pruning import WeightPruning
from lightning_compress.quantization import WeightClustering, share_weights
from lightning_compress.quantization.kmeans import INITIALISATIONS
from lightning_compress.registry import names
from lightning_compress.report.arms import run_arms

SEEDS, EPOCHS, TUNING, SPARSITY, RATE = 3, 40, 8, 0.9, 2e-3
NUMBERS = (2, 4, 8, 16, 32, 64, 128, 256)
FOLDER = OUTPUTS / "clusters"


def pruned(seed: int) -> dict[str, torch.Tensor]:
    """Weights of the pruned network of this seed, trained once."""
    path = FOLDER / f"pruned-{seed}.pt"
    if not path.exists():
        data, module = digits(seed), fresh(seed, RATE)
        train(module, data, EPOCHS, WeightPruning(SPARSITY))
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(module.state_dict(), path)
    return torch.load(path, weights_only=True)


def run(init: str | None, clusters: int, seed: int) -> dict[str, float]:
    """One clustering of one network; without ``init`` the pruned network itself, trained on as long."""
    weights, data, module = pruned(seed), digits(seed), fresh(seed, RATE / 2)
    module.load_state_dict(weights)
    callbacks = [WeightPruning(SPARSITY, schedule="one_shot", max_step=1.0)]
    if init is not None:
        for layer in (module.network.fc1, module.network.fc2, module.network.fc3):
            layer.weight.data = share_weights(layer.weight, clusters, init=init).values.detach()
        callbacks.append(WeightClustering(clusters, init=init, start=0))
    at_once = accuracy(module, data.test.tensors)
    module.load_state_dict(weights)
    torch.manual_seed(seed)
    train(module, data, TUNING, *callbacks)
    return {**figures(module, data), "at once": at_once}


if __name__ == "__main__":
    inits = names(INITIALISATIONS)
    arms = {"pruned, not clustered": lambda seed: run(None, 0, seed)}
    arms |= {f"{init} {k}": lambda seed, init=init, k=k: run(init, k, seed) for k in NUMBERS for init in inits}
    comparison = run_arms(arms, range(SEEDS), FOLDER, test_to_train=TEST_TO_TRAIN)
    print(comparison.table("accuracy", "pruned, not clustered", "at once"), "\n")
    print("| clusters | " + " | ".join(inits) + " |\n|" + "---|" * (len(inits) + 1))
    for k in NUMBERS:
        cells = [
            f"{fmean(comparison.values(f'{init} {k}', 'at once')):.2f} / "
            f"{fmean(comparison.values(f'{init} {k}', 'accuracy')):.2f}"
            for init in inits
        ]
        print(f"| {k} | " + " | ".join(cells) + " |")
