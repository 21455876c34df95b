"""Two gloo processes that see different data stay bit-equal, whatever the criterion looks at."""

from pathlib import Path

import pytest
from support import on_two_processes, same


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    script = Path(__file__).parent / "two_pruning_processes.py"
    return on_two_processes(script, tmp_path_factory.mktemp("two-pruning-processes"))


@pytest.mark.parametrize("case", ["taylor", "wanda", "obs", "snip", "set", "sensitivity"])
def test_weights_and_masks_are_equal_on_both_processes(results, case):
    first, second = results[case]
    assert same(first, second)
    assert first["reached"] > 0.3
