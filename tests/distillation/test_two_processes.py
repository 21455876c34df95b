"""Two gloo processes stay bit-equal: students, adapters and what is logged of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import same

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two-processes")
    paths = [str(HERE.parent), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / "two_processes.py"), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    runs = [run for run in folder.iterdir() if (run / "rank0.pt").exists()]
    return {run.name: [torch.load(run / f"rank{rank}.pt", weights_only=True) for rank in range(2)] for run in runs}


@pytest.mark.parametrize("case", ["plain", "manual", "taps", "transfer", "cache"])
def test_students_adapters_and_figures_are_equal_on_both_processes(results, case):
    first, second = results[case]
    for key in ("state_dict", "adapters", "agreement", "loss"):
        assert same(first[key], second[key]), key
    assert first["loss"] > 0


def test_resume_on_two_processes_is_exact(results):
    for one, two in zip(results["taps"], results["taps-resumed"], strict=True):
        assert same(one["state_dict"], two["state_dict"])
        assert same(one["adapters"], two["adapters"])
