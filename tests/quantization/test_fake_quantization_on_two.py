"""Two gloo processes end with the same weights, ranges and scales, though each sees other batches; resumed too."""

from pathlib import Path

import pytest
import torch
from support import on_two_processes, same

CASES = ["observed", "lsq", "histogram"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    script = Path(__file__).parent / "fake_quantization_on_two.py"
    return on_two_processes(script, tmp_path_factory.mktemp("two-processes"))


@pytest.mark.parametrize("case", CASES)
def test_weights_ranges_and_scales_are_equal_on_both_processes(results, case):
    first, second = results[case]
    assert not torch.equal(first["random"], second["random"])
    for key in ("state_dict", "quantizers", "scales"):
        assert same(first[key], second[key]), key


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("case", CASES)
def test_resume_on_two_processes_is_exact_before_and_after_the_freeze(results, case, epoch):
    for one, two in zip(results[case], results[f"{case}-from-{epoch}"], strict=True):
        for key in ("state_dict", "quantizers", "scales"):
            assert same(one[key], two[key]), key
