"""Every private Lightning name that the package uses, in one file; ``tests/training/test_private.py`` is their
canary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten
from torch.utils.data import DataLoader, IterableDataset

from lightning_compress.errors import CompressionError

FEW_SAMPLES = 8
PRIVATE_NAMES = (
    "trainer.callbacks",
    "trainer._checkpoint_connector.dump_checkpoint",
    "trainer.fit_loop._data_fetcher",
    "trainer.fit_loop._combined_loader",
    "trainer.fit_loop._combined_loader._spec",
    "trainer.fit_loop.epoch_loop.batch_progress",
    "trainer.strategy._setup_model",
    "trainer.strategy._register_ddp_hooks",
    "module._apply_batch_transfer_handler",
    "module._compiler_ctx",
    "module._metric_attributes",
    "trainer._logger_connector.metrics",
    "lightning.pytorch.strategies.launchers._MultiProcessingLauncher",
)


def validation_metrics(trainer: L.Trainer) -> dict[str, float]:
    """What this validation has logged; ``trainer.callback_metrics`` also holds what earlier epochs left there."""
    return {name: float(value) for name, value in trainer._logger_connector.metrics["callback"].items()}


def forget_metric_names(module: L.LightningModule) -> None:
    """Let a copy look up its torchmetrics anew: Lightning remembers them by ``id``, which are those of the original."""
    module._metric_attributes = None


def amend_checkpoints(trainer: L.Trainer, amend: Callable[[dict[str, Any]], None]) -> None:
    """Call ``amend`` on every checkpoint that the Trainer makes, weights-only ones after the fit included."""
    connector = trainer._checkpoint_connector
    if not isinstance(connector.dump_checkpoint, _AmendedDump):
        connector.dump_checkpoint = _AmendedDump(connector.dump_checkpoint, amend)  # type: ignore[method-assign]


class _AmendedDump:
    def __init__(self, dump: Callable[..., dict[str, Any]], amend: Callable[[dict[str, Any]], None]) -> None:
        self._dump, self._amend = dump, amend

    def __call__(self, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint = self._dump(weights_only)
        self._amend(checkpoint)
        return checkpoint


def pretend_epoch(other: L.Trainer, trainer: L.Trainer) -> None:
    """Let another Trainer be in the same epoch and have the same data module, for steps that look at them."""
    other.fit_loop.epoch_progress.current.completed = trainer.current_epoch
    other.datamodule = trainer.datamodule  # type: ignore[attr-defined]


def get_callbacks(trainer: L.Trainer) -> list[Callback]:
    """The Trainer's callbacks in the order in which they are called."""
    return list(trainer.callbacks)  # type: ignore[attr-defined]


def set_callbacks(trainer: L.Trainer, callbacks: list[Callback]) -> None:
    """Another order; a new list, since Lightning may be walking through the old one."""
    trainer.callbacks = callbacks  # type: ignore[attr-defined]


def restart_train_iterator(trainer: L.Trainer) -> None:
    """Begin the running epoch's data again from the present random state (Lightning has made its iterator before)."""
    if trainer.fit_loop._data_fetcher is not None:
        iter(trainer.fit_loop._data_fetcher)


def validation_batches(trainer: L.Trainer, module: L.LightningModule) -> Iterator[Any]:
    """The batches of the first validation loader as ``validation_step`` gets them."""
    loaders = trainer.val_dataloaders
    while isinstance(loaders, list | tuple | dict):
        loaders = next(iter(loaders.values() if isinstance(loaders, dict) else loaders))
    for batch in loaders or ():
        yield module._apply_batch_transfer_handler(trainer.precision_plugin.convert_input(batch), device=module.device)


def train_loaders(trainer: L.Trainer) -> list[Any]:
    """The training data loaders as Lightning has prepared them."""
    loader = trainer.fit_loop._combined_loader
    return [] if loader is None else list(loader.flattened)


def small_train_batch(trainer: L.Trainer, module: L.LightningModule) -> Any:
    """A few samples as ``training_step`` would get them; the loaders' iterators and generators are not touched."""
    combined = trainer.fit_loop._combined_loader
    if combined is None:
        raise CompressionError("The Trainer has no training data. Give the fit a train_dataloader.")
    batch = tree_unflatten([_first_samples(loader) for loader in combined.flattened], combined._spec)
    batch = trainer.precision_plugin.convert_input(batch)
    return module._apply_batch_transfer_handler(batch, device=module.device)


def _first_samples(loader: Any) -> Any:
    if not isinstance(loader, DataLoader):
        return next(iter(loader))
    size = min(loader.batch_size or FEW_SAMPLES, FEW_SAMPLES)
    if isinstance(loader.dataset, IterableDataset):
        size = size if loader.batch_size is not None else 1
        return next(iter(DataLoader(loader.dataset, batch_size=size, collate_fn=loader.collate_fn)))
    dataset: Any = loader.dataset
    return loader.collate_fn([dataset[index] for index in range(min(size, len(dataset)))])


def spread_train_batches(trainer: L.Trainer, module: L.LightningModule, samples: int) -> list[Any]:
    """So many training samples, spread evenly over each loader's data set, in batches as ``training_step`` would get
    them; always the same ones, and the loaders' iterators and generators are not touched.
    """
    combined = trainer.fit_loop._combined_loader
    if combined is None:
        raise CompressionError("The Trainer has no training data. Give the fit a train_dataloader.")
    batches = []
    for parts in zip(*[_spread_samples(loader, samples) for loader in combined.flattened], strict=False):
        batch = trainer.precision_plugin.convert_input(tree_unflatten(list(parts), combined._spec))
        batches.append(module._apply_batch_transfer_handler(batch, device=module.device))
    return batches


def _spread_samples(loader: Any, samples: int) -> Iterator[Any]:
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        yield _first_samples(loader)
        return
    dataset: Any = loader.dataset
    count, size = min(samples, len(dataset)), loader.batch_size or FEW_SAMPLES
    indices = [k * len(dataset) // count for k in range(count)]
    for start in range(0, count, size):
        yield loader.collate_fn([dataset[index] for index in indices[start : start + size]])


def rehearse_training_step(module: nn.Module, trainer: L.Trainer, batch: Any, step: str = "training_step") -> Any:
    """What a step of a copy returns, which reads the Trainer and fills the copy's gradients, but logs nothing and
    steps no optimizer.
    """
    assert isinstance(module, L.LightningModule)
    mine = dict(module.named_parameters())
    twins = {id(p): mine[name] for name, p in trainer.lightning_module.named_parameters() if name in mine}
    module.trainer = trainer
    for name in ("log", "log_dict", "toggle_optimizer", "untoggle_optimizer", "clip_gradients"):
        module.__dict__[name] = _do_nothing
    module.__dict__["manual_backward"] = _backward
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    for name, acting in (("optimizers", trainer.optimizers), ("lr_schedulers", schedulers)):
        module.__dict__[name] = _Idles([_Idle(one, twins) for one in acting])
    method = getattr(module, step)
    return method(batch, 0, **({"dataloader_idx": 0} if "dataloader_idx" in signature(method).parameters else {}))


class _Idles:
    """What ``self.optimizers()`` or ``self.lr_schedulers()`` gives in a rehearsal."""

    def __init__(self, idle: list[_Idle]) -> None:
        self._idle = idle

    def __call__(self, *_: Any, **__: Any) -> Any:
        if len(self._idle) == 1:
            return self._idle[0]
        return self._idle or None


class _Idle:
    """An optimizer or scheduler of a rehearsal: it can be looked at, and does nothing but run a closure."""

    def __init__(self, acting: Any, twins: dict[int, nn.Parameter]) -> None:
        self._acting, self._twins = acting, twins

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        groups = self._acting.param_groups
        return [{**group, "params": [self._twins.get(id(p), p) for p in group["params"]]} for group in groups]

    def step(self, closure: Any = None, *_: Any, **__: Any) -> Any:
        return closure() if callable(closure) else None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._acting, name, _do_nothing)
        if name in _LOOKED_AT or not callable(found):
            return found
        return nullcontext if name.startswith("toggle") else _do_nothing


_LOOKED_AT = ("get_last_lr", "state_dict")


def _backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
    if loss.requires_grad:
        loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]


def _do_nothing(*_: Any, **__: Any) -> None:
    return None


def batches_done_in_epoch(trainer: L.Trainer) -> int:
    """Batches of the running epoch that have been trained on; 0 when the epoch is complete."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return 0 if progress.is_last_batch else int(progress.current.ready)


def restart_after(trainer: L.Trainer, batches: int) -> None:
    """Begin the running epoch's data again, past the first ``batches``, without loading those; draws as the epoch's
    start did.
    """
    skips = []
    for loader in train_loaders(trainer):
        skips.append(_SkippingSampler(loader, batches))
        loader.__dict__["batch_sampler"] = skips[-1]
    restart_train_iterator(trainer)
    for skip in skips:
        skip.draw()


class _SkippingSampler:
    """Passes over the first index batches once, then puts the user's sampler back."""

    def __init__(self, loader: DataLoader[Any], count: int) -> None:
        self._loader, self._sampler, self._count = loader, loader.batch_sampler, count
        self._iterator: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        self._loader.__dict__["batch_sampler"] = self._sampler
        return self

    def __next__(self) -> Any:
        return next(self.draw())

    def draw(self) -> Iterator[Any]:
        """Draw the epoch's order, if that has not happened yet: after the loader's own draws, as in an epoch that is
        not resumed.
        """
        if self._iterator is None:
            self._iterator = iter(self._sampler or ())
            for _ in range(self._count):
                next(self._iterator, None)
        return self._iterator

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)


def rewrap_model(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Wrap the module anew for data-parallel training: the old wrapper keeps buckets for parameters that are gone."""
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and isinstance(strategy.model, nn.parallel.DistributedDataParallel):
        strategy.model = None
        strategy.model = strategy._setup_model(module)
        strategy._register_ddp_hooks()


def returns_weights_to_another_process(trainer: L.Trainer) -> bool:
    """Whether the fit runs in processes whose weights are loaded into the main one at the end (fork, spawn,
    notebook).
    """
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def is_compiled(module: L.LightningModule) -> bool:
    """Whether the LightningModule itself (not a submodule) was passed through ``torch.compile``."""
    return getattr(module, "_compiler_ctx", None) is not None


@contextmanager
def class_hook(cls: type[L.LightningModule], name: str, hook: Callable[..., Any]) -> Iterator[None]:
    """``cls.name`` replaced for the time of the block."""
    own = cls.__dict__.get(name)
    setattr(cls, name, hook)
    try:
        yield
    finally:
        if own is None:
            delattr(cls, name)
        else:
            setattr(cls, name, own)
