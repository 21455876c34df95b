"""Two gloo processes that see different data get the same layers, and stay bit-equal."""

from pathlib import Path

import pytest
from support import on_two_processes, same


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    script = Path(__file__).parent / "two_factoring_processes.py"
    return on_two_processes(script, tmp_path_factory.mktemp("two-factoring-processes"))


@pytest.mark.parametrize("case", ["low_rank", "separable"])
def test_layers_and_weights_are_equal_on_both_processes(results, case):
    first, second = results[case]
    assert same(first, second)
    assert first["reached"] == 1.0
    assert "network.branch.0.weight" in first["parameters"]
