"""Edits, the Plan that lists them and the Journal that tells why; plain torch, no Lightning."""

from lightning_compress.plan.condense import condensed
from lightning_compress.plan.edits import (
    ATTRIBUTES,
    Attribute,
    Edit,
    KeepIndices,
    RegrowIndices,
    Slice,
    named_tensors,
)
from lightning_compress.plan.exits import BANK, AttachExits, DetachExits, ExitBank, pool_features
from lightning_compress.plan.explain import CHECKPOINT_KEY, explain, read_checkpoint
from lightning_compress.plan.journal import Entry, Journal
from lightning_compress.plan.plan import Plan, PlanDifference
from lightning_compress.plan.record import Follower, Record
from lightning_compress.plan.replacement import ReplaceModule, RestoreModule

__all__ = [
    "ATTRIBUTES",
    "BANK",
    "CHECKPOINT_KEY",
    "AttachExits",
    "Attribute",
    "DetachExits",
    "Edit",
    "Entry",
    "ExitBank",
    "Follower",
    "Journal",
    "KeepIndices",
    "Plan",
    "PlanDifference",
    "Record",
    "RegrowIndices",
    "ReplaceModule",
    "RestoreModule",
    "Slice",
    "condensed",
    "explain",
    "named_tensors",
    "pool_features",
    "read_checkpoint",
]
