"""Two gloo processes stay bit-equal: students, adapters and what is logged of them."""

from pathlib import Path

import pytest
from support import on_two_processes, same


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    script = Path(__file__).parent / "two_processes.py"
    return on_two_processes(script, tmp_path_factory.mktemp("two-processes"))


@pytest.mark.parametrize("case", ["plain", "manual", "taps", "transfer", "validation", "cache"])
def test_students_adapters_and_figures_are_equal_on_both_processes(results, case):
    first, second = results[case]
    for key in ("state_dict", "weights", "adapters", "agreement", "loss"):
        assert same(first[key], second[key]), key
    assert first["loss"] > 0


def test_resume_on_two_processes_is_exact(results):
    for one, two in zip(results["taps"], results["taps-resumed"], strict=True):
        assert same(one["state_dict"], two["state_dict"])
        assert same(one["adapters"], two["adapters"])
