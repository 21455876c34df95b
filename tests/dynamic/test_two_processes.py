"""Two gloo processes stay bit-equal: networks, heads, thresholds, statistics of every width, and blocks."""

from pathlib import Path

import pytest
import torch
from dynamic.two_processes import CASES, RESUMED
from support import on_two_processes, same


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    script = Path(__file__).parent / "two_processes.py"
    return on_two_processes(script, tmp_path_factory.mktemp("two-processes"))


@pytest.mark.parametrize("case", CASES)
def test_everything_is_equal_on_both_processes(results, case):
    first, second = results[case]
    assert same(first, second)
    assert not any(bool(torch.isnan(value).any()) for value in first["state_dict"].values())


@pytest.mark.parametrize("case", CASES)
def test_the_network_learns_unless_it_is_frozen(results, case):
    found = results[case][0]
    unmoved = {name: same(found["state_dict"][name], value) for name, value in found["before"].items()}
    assert all(unmoved.values()) if case == "frozen" else not unmoved["network.fc.weight"]


@pytest.mark.parametrize("case", ["exits", "placed", "frozen", "exits-pruned"])
def test_the_heads_learn_after_the_first_epoch_too(results, case):
    found = results[case][0]
    for head in ("heads.0.weight", "heads.1.weight"):
        assert not torch.equal(found["bank"][head], found["early"][head])
    assert case == "frozen" or float(found["logged"]["compress/exit1_acc"]) > 0.2


@pytest.mark.parametrize("case", RESUMED)
def test_resume_on_two_processes_is_exact(results, case):
    for one, two in zip(results[case], results[f"{case}-resumed"], strict=True):
        assert same({**one, "before": None}, {**two, "before": None})
