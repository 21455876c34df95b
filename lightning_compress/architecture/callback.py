"""What the callbacks share that replace trained layers in mid-fit: data, stages, Plan edits, resume."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil
from typing import Any

import lightning as L

from lightning_compress.architecture.choosing import Settings
from lightning_compress.architecture.conversion import Conversion, apply_, convert
from lightning_compress.architecture.factorization import Choice
from lightning_compress.architecture.functions import calls_of, check_data
from lightning_compress.architecture.layers import find_layers
from lightning_compress.errors import CompressionError
from lightning_compress.random_states import isolated_random_states
from lightning_compress.surgery import TracingInput, capture
from lightning_compress.surgery.targets import refuse_text
from lightning_compress.training import GradualCallback, Recovery, Schedule, private


class FactoringCallback(GradualCallback):
    """Replaces layers, those that run first first, in one or several stages with training in between.

    Which layer becomes what is settled at the first stage. Each stage fits its layers, one after the other, to what
    they compute in the network as it is at that moment. Process 0 works it out, the others receive it.

    Args:
        data: calibration batches; None takes samples of the training data as ``training_step`` passes them on.
        samples: how many of those, spread evenly.
        targets: patterns of layers.
        exclude: likewise.
        stages: how many times layers are replaced; each takes an equal share of them.
        start: time of the first stage: an int counts epochs, a float is a share of the fit.
        recover: the gate; then each recovery releases the next stage.
        recalibrate: BatchNorm statistics after each stage.
        name: distinguishes two of a class.
    """

    order = 20
    edits_shape = True

    def __init__(
        self,
        *,
        data: Iterable[Any] | None,
        samples: int,
        targets: Sequence[str] | None,
        exclude: Sequence[str],
        stages: int,
        start: float,
        recover: Recovery | Mapping[str, Any] | None,
        recalibrate: bool | str,
        name: str | None,
    ) -> None:
        kind = type(self).__name__
        if isinstance(data, Iterator):
            raise CompressionError(f"{kind}(data=...): each stage reads it anew; give a loader or a list.")
        check_data(data)
        if type(samples) is not int or samples < 1:
            raise CompressionError(f"{kind}(samples={samples!r}): at least one.")
        if type(stages) is not int or stages < 1:
            raise CompressionError(f"{kind}(stages={stages!r}): at least one.")
        if not (isinstance(recalibrate, bool) or recalibrate == "auto"):
            raise CompressionError(f'{kind}(recalibrate={recalibrate!r}): True, False or "auto".')
        refuse_text(targets, "targets")
        refuse_text(exclude, "exclude")
        late = stages == 1 or (isinstance(start, float) and start > 0.5)
        schedule = Schedule("linear", start=start, end=1.0 if late else 0.75, rounds=stages)
        super().__init__(0.0, schedule=schedule, recover=recover, max_step=1.0, name=name)
        self.final = 1.0
        self.samples, self.recalibrate = samples, recalibrate
        self._data, self._targets_of, self._exclude = data, targets, tuple(exclude)

    # -- what a subclass says -----------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def settings(self) -> Settings:
        """Who chooses."""

    # -- state --------------------------------------------------------------------------------------------------------

    def start_over(self) -> None:
        """Forget the choices too."""
        super().start_over()
        self._choices: dict[str, Choice] | None = None
        self._times: dict[str, int] = {}
        self._done: list[str] = []
        self.conversions: list[Conversion] = []

    def get_compression_state(self) -> dict[str, Any]:
        """The choices, and which of them have been made."""
        choices = None
        if self._choices is not None:
            choices = {name: [choice.method, list(choice.ranks)] for name, choice in self._choices.items()}
        ours = {"choices": choices, "times": dict(self._times), "done": list(self._done)}
        return {**super().get_compression_state(), **ours}

    def set_compression_state(self, state: dict[str, Any]) -> None:
        """Go back, or on after a resume."""
        super().set_compression_state(state)
        choices = state["choices"]
        self._choices = (
            None
            if choices is None
            else {name: Choice(method, tuple(ranks)) for name, (method, ranks) in choices.items()}
        )
        self._times, self._done = dict(state["times"]), list(state["done"])

    @property
    def quantity(self) -> str:
        """What is counted: of the layers that are to be replaced."""
        return "layers replaced"

    def figures(self) -> dict[str, float]:
        """The network's parameters too."""
        suffix = "" if self.name is None else f"_{self.name}"
        parameters = sum(parameter.numel() for parameter in self.session.module.parameters())
        return {**super().figures(), f"parameters{suffix}": float(parameters)}

    # -- cutting ------------------------------------------------------------------------------------------------------

    def cut(self, target: float) -> float:
        """Replace the next layers, until the share ``target`` of them is replaced."""
        fresh = self._choices is None
        if fresh:
            self._choose()
        assert self._choices is not None
        due = ceil(target * len(self._choices) - 1e-9)
        following = [name for name in self._choices if name not in self._done][: max(0, due - len(self._done))]
        if following:
            conversion = self.session.from_first(lambda: self._converted({n: self._choices[n] for n in following}))  # type: ignore[index]
            self.session.rehearse(conversion.edits)
            apply_(self.session.module, conversion, self.session.apply)
            self._done += following
            self.conversions.append(conversion)
            self._write_down(conversion)
        return len(self._done) / len(self._choices)

    def _choose(self) -> None:
        self._choices, self._times, skipped = self.session.from_first(self._chosen)
        for name, reason in skipped.items():
            self.session.write("decision", f"{self.state_key}: {name} is left alone: {reason}")
        if not self._choices:
            raise CompressionError(
                f"{self.state_key} finds no layer that would get smaller. "
                + ("; ".join(f"{name}: {reason}" for name, reason in skipped.items()) or "Everything is excluded.")
            )

    def _chosen(self) -> tuple[dict[str, Choice], dict[str, int], dict[str, str]]:
        module, calls = self.session.module, self._calls()
        with isolated_random_states():
            layers = find_layers(module, self._targets_of, self._exclude, calls[0])
            choices, kept = self.settings.choose(module, layers, calls)
        return choices, dict(layers.calls), {**layers.skipped, **kept}

    def _converted(self, choices: Mapping[str, Choice]) -> Conversion:
        calls, module, aware = self._calls(), self.session.module, self.settings.data_aware
        with isolated_random_states():
            return convert(module, choices, calls, data_aware=aware, times=self._times, recalibrate=self.recalibrate)

    def _calls(self) -> list[TracingInput]:
        """Calls of the network on calibration data."""
        module, trainer = self.session.module, self.session.trainer
        assert trainer is not None
        with isolated_random_states():
            if self._data is not None:
                batches = [module.transfer_batch_to_device(batch, module.device, 0) for batch in self._data]
                calls = calls_of(batches, self.session.tracing.module)
            else:
                batches = private.spread_train_batches(trainer, module, self.samples)
                calls = [self._call(trainer, batch) for batch in batches]
        if not calls:
            raise CompressionError(f"{self.state_key}(data=...): there are no batches.")
        return calls

    def _call(self, trainer: L.Trainer, batch: Any) -> TracingInput:
        return capture(self.session.module, lambda copy: private.rehearse_training_step(copy, trainer, batch))

    def _write_down(self, conversion: Conversion) -> None:
        for layer in conversion.layers:
            before, after = layer.parameters
            text = f"{layer.name} became {layer.choice}: {before:,} -> {after:,} parameters, {layer.loss:.2%} lost"
            data = {"layer": layer.name, "before": before, "after": after, "loss": layer.loss}
            self.session.write("decision", f"{self.state_key}: {text}", **data)
        if conversion.error is not None:
            text = f"error of the outputs {conversion.error:.2%}"
            text += ", BatchNorm statistics estimated anew" if conversion.recalibrated else ""
            self.session.write("measurement", f"{self.state_key}: {text}", error=conversion.error)
