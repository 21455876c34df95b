"""What a latency budget in low rank comes to: asked 1.5x and 2x, measured anew against the dense network.

Run ``python tests/benchmarks/latency_factors.py --runtime onnxruntime`` on a quiet machine. Ranks and methods are
chosen on one measurement and the result is measured anew with more rounds: at least 0.95 of what was asked should be
reached, and nothing should be slower than dense.
"""

import argparse

import torch
from torch import nn

from lightning_compress.architecture import low_rank_
from lightning_compress.errors import CompressionError
from lightning_compress.measure import compare_latency, runner
from lightning_compress.surgery import private_copy
from lightning_compress.zoo.resnet import SmallResNet


def vgg():
    layers, inputs = [], 3
    for outputs in (32, 64, 0, 128, 128, 0, 256, 256):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()] if outputs else [nn.MaxPool2d(2)]
        inputs = outputs or inputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


NETWORKS = {
    "VGG-like": vgg,
    "small ResNet": lambda: SmallResNet(channels=(32, 64, 128), in_channels=3),
}
METHODS = {
    "low rank": None,
    "and separable": ("channel", "spatial", "tucker", "depthwise_first", "depthwise_branches", "pointwise_first"),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--speedups", nargs="*", type=float, default=[1.5, 2.0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.networks:
        for speedup in arguments.speedups:
            for kind, methods in METHODS.items():
                torch.manual_seed(0)
                dense = NETWORKS[name]().eval()
                value = torch.randn(arguments.batch_size, 3, arguments.pixels, arguments.pixels)
                data = [torch.randn(16, 3, arguments.pixels, arguments.pixels) for _ in range(2)]
                small = private_copy(dense)
                options = {"runtime": arguments.runtime, "batch_size": arguments.batch_size}
                try:
                    conversion = low_rank_(small, speedup=speedup, methods=methods, data=data, **options)
                except CompressionError as refusal:
                    print(f"{name:12} {kind:13} asked {speedup:.1f}x: {refusal}", flush=True)
                    continue
                calls = {
                    key: runner(net, [value], arguments.runtime) for key, net in (("dense", dense), ("small", small))
                }
                times = compare_latency(calls, rounds=arguments.rounds)
                reached = 1 / times["small"].ratio.median
                chosen = ", ".join(str(layer.choice) for layer in conversion.layers)
                print(
                    f"{name:12} {kind:13} asked {speedup:.1f}x, measured anew {reached:.2f}x ({reached / speedup:.2f} "
                    f"of it), A/A {times['A/A'].ratio.median:.3f}, error {conversion.error:.3f}: {chosen}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
