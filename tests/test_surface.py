"""What a user finds at the top: names, light imports, one direction of imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import lightning_compress as lc

FLOORS = {
    "errors": 0,
    "registry": 0,
    "random_states": 0,
    "plan": 1,
    "measure": 1,
    "values": 0,
    "surgery": 2,
    "training": 3,
    "pruning": 4,
    "zoo": 4,
}
FLOORS |= {
    "distillation": 4,
    "quantization": 4,
    "architecture": 4,
    "dynamic": 4,
    "artifact": 4,
    "report": 5,
    "export": 5,
    "app": 6,
}
ROOMS = {"pruning", "distillation", "quantization", "architecture", "dynamic"}
PACKAGE = Path(lc.__file__).parent


@pytest.mark.parametrize("name", lc.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(lc, name).__doc__


def test_there_are_at_most_25_public_names():
    assert len(lc.__all__) <= 25


def test_measure_is_a_function_and_a_package():
    assert lc.measure(nn.Linear(2, 3), torch.zeros(1, 2)).macs == 6
    from lightning_compress.measure import compare_latency

    assert lc.measure.compare_latency is compare_latency


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Prune'"):
        _ = lc.Prune


def printed_by(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_is_light():
    heavy = "{'lightning', 'wandb', 'hydra', 'matplotlib', 'torchmetrics', 'torch_pruning', 'sklearn'}"
    code = f"import sys, lightning_compress; print(sorted({heavy} & set(sys.modules)))"
    assert printed_by(code) == "[]"


@pytest.mark.parametrize("room", ["plan", "measure", "surgery"])
def test_the_lower_floors_do_without_lightning(room):
    code = f"import sys, lightning_compress.{room}; print({{'lightning', 'hydra', 'wandb'}} & set(sys.modules))"
    assert printed_by(code) == "set()"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards_only(path):
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if here == "__init__":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        module = node.module if isinstance(node, ast.ImportFrom) else None
        if module and module.startswith("lightning_compress."):
            there = module.split(".")[1]
            assert FLOORS[there] <= FLOORS[here], f"{path} imports {module}"
            assert there == here or not {there, here} <= ROOMS, f"{path} imports {module}"
