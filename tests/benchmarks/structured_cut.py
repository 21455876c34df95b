"""Processor time of a whole structured cut on a network of ResNet-50's size: find groups, choose, prove, cut.

Run ``python tests/benchmarks/structured_cut.py``; at most 3 s on one thread is what it may take.
"""

import time
from functools import partial
from itertools import pairwise

import torch
from torch import nn

from lightning_compress.plan import Plan, Record
from lightning_compress.pruning.neurons import Count, select
from lightning_compress.surgery import TracingInput, find_groups, verify_edit

STAGES = ((64, 256, 3, 1), (128, 512, 4, 2), (256, 1024, 6, 2), (512, 2048, 3, 2))


class Bottleneck(nn.Module):
    def __init__(self, inputs, middle, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv2, self.bn2 = nn.Conv2d(middle, middle, 3, stride, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv3, self.bn3 = nn.Conv2d(middle, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x):
        y = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        return self.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


def resnet50(classes=1000):
    """25.6 million parameters, as torchvision's."""
    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for middle, outputs, count, stride in STAGES:
        for place in range(count):
            layers.append(Bottleneck(width, middle, outputs, stride if place == 0 else 1))
            width = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def main(pixels=224, amount=0.3):
    torch.manual_seed(0)
    network = resnet50().eval()
    tracing = TracingInput("", (torch.randn(1, 3, pixels, pixels),), {})
    for of in ("channels", "params", "macs"):
        network = resnet50().eval()
        moments = [time.process_time()]
        groups = find_groups(network, tracing)
        moments.append(time.process_time())
        scores = {group.name: torch.rand(group.size) for group in groups}
        count = Count(network, tracing, of)
        base = count.after(groups, {group.name: torch.arange(group.size) for group in groups})
        selection = select(groups, scores, partial(count.after, groups), base=base, target=amount)
        moments.append(time.process_time())
        verify_edit(network, selection.edit, tracing)
        moments.append(time.process_time())
        Record.of(network).apply(selection.edit)
        moments.append(time.process_time())
        parts = [after - before for before, after in pairwise(moments)]
        total = sum(parts)
        names = ("find", "choose", "prove", "apply")
        shown = ", ".join(f"{name} {seconds:.2f}" for name, seconds in zip(names, parts, strict=True))
        print(f"{of:9} {len(groups)} groups, {selection.reached:.1%} gone: {total:.2f} s ({shown})")
        assert len(Plan.of(network)) == 1


if __name__ == "__main__":
    main()
