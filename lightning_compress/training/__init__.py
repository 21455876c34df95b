"""The one door to Lightning: Session, callbacks, replay, optimizers through edits, schedules, the gate, guards."""

from lightning_compress.training.atomic_checkpoint import AtomicCheckpointIO
from lightning_compress.training.callback import CompressionCallback
from lightning_compress.training.evaluation import evaluate_copy
from lightning_compress.training.gradual import GradualCallback
from lightning_compress.training.nan_guard import NaNGuard, NonFiniteError
from lightning_compress.training.optimizers import AuxiliaryOptimizer, OptimizerBinding
from lightning_compress.training.recovery import Gate, Recovery
from lightning_compress.training.replay import Replay, load_from_checkpoint
from lightning_compress.training.schedule import Schedule, Target
from lightning_compress.training.session import Session
from lightning_compress.training.snapshot import Snapshot
from lightning_compress.training.target_checkpoint import TargetCheckpoint

__all__ = [
    "AtomicCheckpointIO",
    "AuxiliaryOptimizer",
    "CompressionCallback",
    "Gate",
    "GradualCallback",
    "NaNGuard",
    "NonFiniteError",
    "OptimizerBinding",
    "Recovery",
    "Replay",
    "Schedule",
    "Session",
    "Snapshot",
    "Target",
    "TargetCheckpoint",
    "evaluate_copy",
    "load_from_checkpoint",
]
