"""What a step costs with a teacher beside it (thread CPU time, interleaved, one thread).

    python tests/benchmarks/distillation_cost.py

Must be reached: asking the teacher, at most 1.03 of (student step + teacher forward under no_grad); reading a
cache, at most 1.10 of the student's step. Each step runs inside a fit of its own Trainer, through all hooks that
``Distillation`` has in a step, but without Lightning's loop, which costs as much with and without us. "By hand" is
the same step as a few plain lines: nothing can be expected to be much below it.
"""

import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress.distillation import Distillation, Indexed, Tap, Teacher
from lightning_compress.distillation.losses.kd import kd
from lightning_compress.measure import compare_latency

torch.set_num_threads(1)
SAMPLES, BATCH, CLASSES = 2000, 32, 100
Step = Callable[[], None]


class Classifier(L.LightningModule):
    """Four convolutions of growing width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((3, width, 2 * width, 4 * width, 4 * width)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, stride=2 if layers else 1)]
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        self.network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)


class Inside(Callback):
    """Calls ``then`` with the step of a running fit, after the fit's own first step."""

    def __init__(self, then: Callable[[Step], None]) -> None:
        self._then = then

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        ours = [callback for callback in trainer.callbacks if isinstance(callback, Distillation)]
        (optimizer,) = trainer.optimizers

        def step() -> None:
            for callback in ours:
                callback.on_train_batch_start(trainer, pl_module, batch, batch_idx)
            loss = pl_module.training_step(batch, batch_idx)
            for callback in ours:
                callback.on_before_zero_grad(trainer, pl_module, optimizer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for callback in ours:
                callback.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

        self._then(step)


def inside(distillation: Distillation | None, data: DataLoader, then: Callable[[Step], None]) -> None:
    """Begin a fit and call ``then`` with its step."""
    callbacks = [*([distillation] if distillation else []), Inside(then)]
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=callbacks,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer.fit(Classifier(8), data)


def with_steps(
    variants: dict[str, tuple[Distillation | None, DataLoader]], then: Callable[[dict[str, Step]], None]
) -> None:
    """One fit inside the other, so that the steps of all of them can be called in any order."""
    steps: dict[str, Step] = {}

    def enter(names: list[str]) -> None:
        if not names:
            then(steps)
            return
        name, *others = names

        def found(step: Step) -> None:
            steps[name] = step
            enter(others)

        inside(*variants[name], found)

    enter(list(variants))


def main(rounds: int) -> None:
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(SAMPLES, 3, 32, 32), torch.randint(CLASSES, (SAMPLES,)))
    plain = DataLoader(data, BATCH, shuffle=True)
    numbered = DataLoader(Indexed(data), BATCH, shuffle=True)
    teacher = Classifier(24)
    variants = {
        "plain step": (None, plain),
        "online": (Distillation(teacher), plain),
        "online, folded": (Distillation(Teacher(teacher, fold=True)), plain),
        "online, two taps": (Distillation(teacher, taps=[Tap("network.3"), Tap("network.6", loss="pkt")]), plain),
        "cached": (Distillation(teacher, cache=Path(tempfile.mkdtemp(), "cache"), fidelity=False), numbered),
    }

    def measure(steps: dict[str, Step]) -> None:
        images, labels = (tensor[:BATCH] for tensor in data.tensors)
        student = Classifier(8)
        optimizer = student.configure_optimizers()
        judge = Classifier(24).eval()

        def with_forward() -> None:
            steps["plain step"]()
            with torch.no_grad():
                judge(images)

        def by_hand() -> None:
            logits = student(images)
            with torch.no_grad():
                targets = judge(images)
            loss = 0.5 * cross_entropy(logits, labels) + 0.5 * kd(logits, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        console = Console()
        online = {"plain step + teacher's forward": with_forward, "by hand": by_hand}
        online |= {name: step for name, step in steps.items() if name.startswith("online")}
        console.print(compare_latency(online, rounds=rounds, warmup=5))
        cached = {name: steps[name] for name in ("plain step", "cached")}
        console.print(compare_latency(cached, rounds=rounds, warmup=5))

    with_steps(variants, measure)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
