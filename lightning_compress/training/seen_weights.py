"""The network as its forwards see it, while callbacks keep finer values in the parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lightning_compress.training.session import Session


@contextmanager
def weights_as_seen(session: Session) -> Iterator[None]:
    """Inside, parameters hold what a forward sees and the metrics were measured with: weights of few bits."""
    parameters = dict(session.module.named_parameters())
    with torch.no_grad(), ExitStack() as stack:
        views = [stack.enter_context(one.seen_weights(parameters)) for one in session.callbacks]
        seen = {name: value for view in views for name, value in view.items() if name in parameters}
        former = {name: parameters[name].data for name in seen}
        try:
            for name, value in seen.items():
                parameters[name].data = value
            yield
        finally:
            for name, value in former.items():
                parameters[name].data = value
