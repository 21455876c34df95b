"""Networks, edits of them, and what makes two states of a module the same."""

import torch
from torch import Tensor, nn

from lightning_compress.plan import Attribute, KeepIndices, Plan, ReplaceModule, Slice

FACTORED = {
    "type": "Sequential",
    "children": [
        ["0", {"type": "Linear", "arguments": {"in_features": 6, "out_features": 2, "bias": False}}],
        ["1", {"type": "Linear", "arguments": {"in_features": 2, "out_features": 4}}],
    ],
}


class Net(nn.Module):
    """Linear layers with a norm between, a shared module, a tied weight, a buffer that is not persistent."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6)
        self.second = nn.Linear(6, 4)
        self.twin = nn.Linear(6, 4)
        self.twin.weight = self.second.weight
        self.again = self.norm
        self.register_buffer("scale", torch.ones(6), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        hidden = torch.relu(self.again(self.norm(self.first(values)))) * self.scale
        return self.second(hidden) + self.twin(hidden)


def keep(*kept: int, size: int = 6, label: str = "") -> KeepIndices:
    """Neurons of ``Net.first``, with all that hangs on them."""
    indices = torch.tensor(kept)
    tensors = [("first.weight", 0), ("first.bias", 0), ("norm.weight", 0), ("norm.bias", 0)]
    tensors += [("norm.running_mean", 0), ("norm.running_var", 0), ("second.weight", 1), ("scale", 0)]
    counts = [("first", "out_features"), ("norm", "num_features"), ("second", "in_features"), ("twin", "in_features")]
    return KeepIndices(
        tuple(Slice(name, dim, size, indices) for name, dim in tensors),
        tuple(Attribute(module, name, size, len(kept)) for module, name in counts),
        label or f"keep {kept}",
    )


def factor(label: str = "factored") -> ReplaceModule:
    return ReplaceModule("second", FACTORED, label)


def plan() -> Plan:
    """Two cuts, a replacement, and another cut."""
    last = KeepIndices((Slice("first.weight", 1, 5, torch.tensor([0, 4])),), (Attribute("first", "in_features", 5, 2),))
    return Plan((keep(0, 2, 3, 5), keep(1, 2, size=4), ReplaceModule("norm", {"type": "Identity"}), last))


def fingerprint(module: nn.Module) -> list[object]:
    """All that an edit may change: names in their order, the very objects, values, shapes, numbers, flags."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return [
        [(name, id(tensor), tensor.detach().clone().tolist(), tensor.requires_grad) for name, tensor in tensors],
        [(name, id(part), part.training) for name, part in module.named_modules(remove_duplicate=False)],
        [
            (name, {key: value for key, value in vars(part).items() if type(value) in (int, tuple)})
            for name, part in module.named_modules()
        ],
        [[id(flat) for flat in vars(part).get("_flat_weights", [])] for part in module.modules()],
        list(module.state_dict()),
    ]


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
