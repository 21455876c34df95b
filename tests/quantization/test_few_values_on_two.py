"""Two gloo processes stay bit-equal: codebooks, trained values, drawn signs; resumed too."""

from pathlib import Path

import pytest
import torch
from support import on_two_processes, same

CASES = ["clusters", "rate", "stochastic", "ttq"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    script = Path(__file__).parent / "few_values_on_two.py"
    return on_two_processes(script, tmp_path_factory.mktemp("two-processes"))


@pytest.mark.parametrize("case", CASES)
def test_weights_and_codebooks_are_equal_on_both_processes(results, case):
    first, second = results[case]
    assert not torch.equal(first["random"], second["random"])
    assert same(first["state_dict"], second["state_dict"])
    assert same(first["ours"], second["ours"])
    if case in ("clusters", "rate"):  # the others become few values only when the fit is over
        assert len(first["state_dict"]["network.0.weight"].unique()) <= 9


@pytest.mark.parametrize("case", CASES)
def test_resume_on_two_processes_is_exact(results, case):
    for one, two in zip(results[case], results[f"{case}-resumed"], strict=True):
        assert same(one["state_dict"], two["state_dict"])
        assert same(one["ours"], two["ours"])
