"""Stochastic depth for any LightningModule: blocks are passed by at random while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_compress.dynamic.depth import SkippableForward, remember_blocks, skippable, survival
from lightning_compress.errors import CompressionError
from lightning_compress.surgery.blocks import find_blocks
from lightning_compress.surgery.targets import refuse_text
from lightning_compress.training import CompressionCallback
from lightning_compress.values import is_number


class StochasticDepth(CompressionCallback):
    """Passes by residual blocks at random in training, so that the network also works with fewer of them.

    Blocks are found by what they do (:func:`~lightning_compress.surgery.blocks.find_blocks`). In evaluation all are
    used. After the fit :func:`~lightning_compress.dynamic.set_depth` switches to fewer, and
    :func:`~lightning_compress.dynamic.export_depth` gives an ordinary network that has no more than those. Outputs are
    not rescaled, as in LayerDrop (Fan et al., "Reducing Transformer Depth on Demand", ICLR 2020, arXiv:1909.11556).

    Args:
        drop: how probable it is that the last block is passed by, in [0, 1).
        linear: the probability rises linearly with depth (Huang et al., 2016); otherwise it is the same for all.
        mode: "row", each sample by itself, or "batch", which saves the time of the blocks.
        blocks: their names; none finds them.
        name: distinguishes two of them in a Trainer.

    Raises:
        CompressionError: a value out of range; at the start of the fit: no blocks; "batch" on several processes, which
            would wait for gradients of blocks that did not run.

    >>> import lightning as L
    >>> trainer = L.Trainer(callbacks=[StochasticDepth(0.2)], logger=False, enable_checkpointing=False)
    """

    order = 8

    def __init__(
        self,
        drop: float = 0.2,
        *,
        linear: bool = True,
        mode: str = "row",
        blocks: Sequence[str] = (),
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        if not is_number(drop) or not 0 <= drop < 1:
            raise CompressionError(f"StochasticDepth(drop={drop!r}) is not in [0, 1).")
        if mode not in ("row", "batch"):
            raise CompressionError(f'StochasticDepth(mode={mode!r}): "row" or "batch".')
        refuse_text(blocks, "blocks")
        self.drop, self.linear, self.mode, self.blocks = drop, linear, mode, tuple(dict.fromkeys(blocks or ()))
        self._forwards: list[SkippableForward] = []

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle takes no part in the running fit."""
        return {**vars(self), "_session": None, "_forwards": []}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the blocks; from here on they can be passed by."""
        super().on_train_start(trainer, pl_module)
        if self.mode == "batch" and trainer.world_size > 1:
            raise CompressionError(
                f'{self.state_key}(mode="batch") leaves blocks without gradients, for which the other processes would '
                'wait. Use mode="row".'
            )
        given = self.blocks
        names = self.session.from_first(lambda: find_blocks(pl_module, self.session.tracing, given))
        if not names:
            raise CompressionError(
                f"{self.state_key} found no residual blocks: none gives back what it gets when its weights are zero. "
                "Name them: blocks=('layers.0', ...)."
            )
        remember_blocks(pl_module, names)
        for name, keep in zip(names, survival(len(names), self.drop, linear=self.linear), strict=True):
            self._forwards.append(skippable(pl_module.get_submodule(name), self._skip(keep)))
        self.session.write("decision", f"{self.state_key}: {len(names)} blocks can be passed by: {', '.join(names)}")

    def _skip(self, keep: float) -> Any:
        def skip(block: nn.Module, value: Tensor) -> bool | Tensor:
            if not block.training or not torch.is_grad_enabled() or keep >= 1:
                return False
            if self.mode == "batch":
                return bool(torch.rand(()) >= keep)
            return torch.rand(len(value), device=value.device) >= keep

        return skip

    def release(self) -> None:
        """Take everything off; the blocks' names are remembered."""
        for forward in self._forwards:
            forward.take_off()
        self._forwards = []
        super().release()
