"""Networks with exits, for the tests of this folder."""

import warnings
from itertools import pairwise

import torch
from support import ConvNet, User, digits, fit, loader
from torch import Tensor, nn

from lightning_compress.dynamic import EarlyExits, attach_exits, hang_on
from lightning_compress.surgery import TracingInput


class Deep(nn.Module):
    """Stages of convolutions, one behind the other."""

    def __init__(self, widths=(8, 16, 16)) -> None:
        super().__init__()
        ends = [1, *widths]
        self.stages = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise(ends))
        )
        self.fc = nn.Linear(widths[-1], 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.stages(images.view(-1, 1, 8, 8)).mean(dim=(2, 3)))


class DeepUser(User):
    def __init__(self, optimizer: str = "adam", schedule: bool = True) -> None:
        super().__init__("mlp", optimizer, schedule)
        self.network = Deep()


class Encoder(nn.Module):
    """Tokens: eight rows of eight pixels."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.fc = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.encoder(self.embed(images.view(-1, 8, 8))).mean(dim=1))


NETWORKS = {
    "conv": (Deep, ("stages.0", "stages.1")),
    "tokens": (Encoder, ("encoder.layers.0", "encoder.layers.1")),
    "vector": (
        lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10)),
        ("1", "3"),
    ),
    "residual": (ConvNet, ("norm",)),
}


def with_exits(kind: str = "conv", seed: int = 0, **kwargs) -> nn.Module:
    """A network with untrained heads, in evaluation mode."""
    torch.manual_seed(seed)
    build, points = NETWORKS[kind]
    network = build().eval()
    tracing = TracingInput("", (digits()[0][:8],), {})
    hang_on(network, "", attach_exits(network, tracing, points, **kwargs))
    return network


def trained(**kwargs):
    """A LightningModule after a short fit with exits."""
    torch.manual_seed(1)
    module = DeepUser(schedule=False)
    options = {"exits": ("stages.0", "stages.1"), "calibrate": {"macs": 0.6}, **kwargs}
    callback = EarlyExits(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(module, callback, max_epochs=3, train=loader(0, 800))
    return module.eval(), callback
