"""Exit heads in training: what the exits say in a step, their losses and weights, and the optimizer of the heads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from torch.optim import Optimizer

from lightning_compress.dynamic.routing import ExitHook, first_tensor, logits_of, points_of
from lightning_compress.errors import CompressionError
from lightning_compress.plan import ExitBank
from lightning_compress.training import AuxiliaryOptimizer

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def exit_loss(
    logits: Tensor, labels: Tensor, final: Tensor, loss: Loss, self_distillation: float, temperature: float
) -> Tensor:
    """Loss of one exit: the task's, mixed with the divergence from what the whole network says.

    Args:
        logits: of the exit, (N, classes).
        labels: what ``loss`` takes.
        final: of the whole network, (N, classes); no gradient flows into it.
        loss: of logits and labels.
        self_distillation: share of the divergence, in [0, 1]. Zhang et al., "Be Your Own Teacher", ICCV 2019.
        temperature: of both softmaxes.
    """
    if not self_distillation:
        return loss(logits, labels)
    student = (logits / temperature).log_softmax(dim=1)
    teacher = (final.detach() / temperature).log_softmax(dim=1)
    divergence = kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
    return (1 - self_distillation) * loss(logits, labels) + self_distillation * divergence


class ExitTraining:
    """The heads of a network in a fit: hooks that note what they say, and an optimizer beside the user's.

    Args:
        network: that the exits belong to.
        bank: its heads, in the module tree or outside of it.
        learning_rate: of Adam, for those of the heads' parameters that no optimizer of the user has.
        learned: weights of the losses are parameters too: losses are divided by learned variances (Kendall et al.,
            "Multi-Task Learning Using Uncertainty", CVPR 2018, arXiv:1705.07115).
        detached: no gradient flows from the heads into the network.
    """

    def __init__(
        self, network: nn.Module, bank: ExitBank, *, learning_rate: float, learned: bool, detached: bool
    ) -> None:
        self.network, self.bank = network, bank
        self._detached, self._rate = detached, learning_rate
        self.log_variances = nn.Parameter(torch.zeros(len(bank.points) + 1)) if learned else None
        self._answers: dict[int, list[Tensor]] = {}
        self._final: list[Tensor] = []
        self._handles: list[Any] = []
        self._auxiliary: AuxiliaryOptimizer | None = None
        self.active = False

    def attach(self, optimizers: Sequence[Optimizer], scale: Callable[[], float] | None) -> None:
        """Begin to note, and step whenever one of ``optimizers`` does."""
        taken = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
        own = {f"bank.{name}": p for name, p in self.bank.named_parameters() if id(p) not in taken}
        if self.log_variances is not None:
            own["log_variances"] = self.log_variances
        if own:
            self._auxiliary = AuxiliaryOptimizer(own, partial(torch.optim.Adam, lr=self._rate))
            self._auxiliary.attach(optimizers, scale)
        for exit_, module in points_of(self.network, self.bank).items():
            self._handles.append(module.register_forward_hook(ExitHook(exit_, self._note)))
        last = len(self.bank.points)
        self._handles.append(self.network.register_forward_hook(ExitHook(last, self._note_final)))

    def detach(self) -> None:
        """Leave no trace."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._auxiliary is not None:
            self._auxiliary.detach()

    def begin(self) -> None:
        """Forget the answers of the last batch; note those to come."""
        self._answers, self._final, self.active = {}, [], True

    def take(self) -> list[list[Tensor]]:
        """For each forward since :meth:`begin`: the logits of every exit and of the network; then nothing is left."""
        exits = range(len(self.bank.points))
        number = min([len(self._final), *(len(self._answers.get(exit_, [])) for exit_ in exits)])
        calls = [[*(self._answers[exit_][call] for exit_ in exits), self._final[call]] for call in range(number)]
        self._answers, self._final = {}, []
        return calls

    def losses(self, labels: Tensor, loss: Loss, self_distillation: float, temperature: float) -> Tensor | None:
        """The loss of each exit, (exits,), averaged over the forwards of this step; None where there was none.

        Raises:
            CompressionError: a forward of another number of rows than there are labels.
        """
        calls = self.take()
        if not calls:
            return None
        if any(len(call[-1]) != len(labels) for call in calls):
            raise CompressionError(
                f"The network ran on {[len(call[-1]) for call in calls]} rows for {len(labels)} labels. Give "
                "EarlyExits(labels=...), a function from the batch to the labels of all rows."
            )
        rows = [
            torch.stack([exit_loss(one, labels, call[-1], loss, self_distillation, temperature) for one in call[:-1]])
            for call in calls
        ]
        return torch.stack(rows).mean(dim=0)

    def total(self, own: Tensor, losses: Tensor, weights: Sequence[float]) -> Tensor:
        """What to add to the task's ``own`` loss."""
        if self.log_variances is None:
            return losses @ losses.new_tensor(list(weights))
        logs = self.log_variances.to(losses)
        factors = (-logs).exp()
        return losses @ factors[:-1] + (factors[-1] - 1) * own + logs.sum()

    def set_rate(self, share: float) -> None:
        """The heads' learning rate goes with the user's schedule."""
        if self._auxiliary is not None:
            for group in self._auxiliary.optimizer.param_groups:
                group["lr"] = self._rate * share

    def zero_grad(self) -> None:
        """Where the user's optimizer clears its own gradients."""
        if self._auxiliary is not None:
            self._auxiliary.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Values and moments of what the auxiliary optimizer has."""
        return {} if self._auxiliary is None else copy.deepcopy(self._auxiliary.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        if self._auxiliary is not None and state and state["values"].keys() == self._auxiliary.parameters.keys():
            self._auxiliary.load_state_dict(copy.deepcopy(dict(state)))

    def _note(self, exit_: int, output: Any) -> None:
        if self.active:
            features = first_tensor(output)
            # a copy, for an in-place activation behind the exit would change what the head's backward reads
            features = features.detach().clone() if self._detached else features.clone()
            logits = self.bank.logits(exit_, features)
            self._answers.setdefault(exit_, []).append(logits)

    def _note_final(self, _: int, output: Any) -> None:
        if self.active:
            self._final.append(logits_of(output))
