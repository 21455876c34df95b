"""What a cut of half of the neurons costs in accuracy before any training, with compensation and without it.

Run ``python tests/benchmarks/neuron_compensation.py``: three networks on digits, paired seeds, magnitude and random
criterion. At most half of the loss has to be left.
"""

import argparse
import statistics

import torch
from torch.nn import functional

from lightning_compress.pruning.neurons import Count, select, weights_of_units
from lightning_compress.surgery import TracingInput, find_groups, private_copy
from lightning_compress.surgery.compensation import compensation, write_
from lightning_compress.zoo.lenet import LeNet5, LeNet300
from lightning_compress.zoo.resnet import SmallResNet

NETWORKS = {"LeNet-300-100": LeNet300, "LeNet-5": LeNet5, "SmallResNet": lambda: SmallResNet(channels=(8, 16, 32))}


def digits(seed):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    parts = train_test_split(data.images / 16.0, data.target, test_size=0.25, stratify=data.target, random_state=seed)
    x_train, x_test, y_train, y_test = (torch.tensor(part) for part in parts)
    return x_train.float()[:, None], y_train, x_test.float()[:, None], y_test


def train(network, x, y, epochs):
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(network(x[index]), y[index]).backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def accuracy(network, x, y):
    return 100 * float((network(x).argmax(1) == y).float().mean())


def losses(name, seed, epochs, amount=0.5, criterion="magnitude"):
    """Points of test accuracy that the cut costs: without and with compensation."""
    torch.manual_seed(seed)
    x_train, y_train, x_test, y_test = digits(seed)
    network = train(NETWORKS[name](), x_train, y_train, epochs)
    tracing = TracingInput("", (x_train[:8],), {})
    groups = find_groups(network, tracing)
    scores = {}
    for group in groups:  # half of each group
        own = weights_of_units(network, group).norm(dim=1) if criterion == "magnitude" else torch.rand(group.size)
        scores[group.name] = own.argsort().argsort().float() / group.size
    count = Count(network, tracing, "channels")
    base = sum(group.size for group in groups)
    edit = select(groups, scores, lambda kept: count.after(groups, kept), base=base, target=amount).edit
    plain, repaired = private_copy(network), private_copy(network)
    write_(repaired, compensation(repaired, edit, [lambda net: net(x_train)]))
    for copy in (plain, repaired):
        edit.apply(copy)
    dense = accuracy(network, x_test, y_test)
    return dense, dense - accuracy(plain, x_test, y_test), dense - accuracy(repaired, x_test, y_test)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    arguments = parser.parse_args()
    for criterion in ("magnitude", "random"):
        for name in NETWORKS:
            found = [losses(name, seed, arguments.epochs, criterion=criterion) for seed in range(arguments.seeds)]
            dense, without, with_ = (statistics.mean(column) for column in zip(*found, strict=True))
            print(
                f"{criterion:9} {name:14} dense {dense:.2f} %; half of the neurons cut: -{without:.2f} points, "
                f"compensated -{with_:.2f} ({with_ / max(without, 1e-9):.0%} of it)"
            )


if __name__ == "__main__":
    main()
