"""The bytes of a layer, counted as Deep Compression counts them."""

import numpy as np
import pytest
import torch
from artifact.coded import pruned

from lightning_compress.artifact.accounting import account_tensor, best_gap_width


def count_by_hand(places, value_bits, width):
    """Han's coding, entry by entry: a gap that does not fit into its field is a filler and what is left of it."""
    bits, last = 0, -1
    for place in places:
        gap = place - last - 1
        while gap >= 2**width:
            bits += value_bits + width
            gap -= 2**width
        bits += value_bits + width
        last = place
    return bits


@pytest.mark.parametrize("value_bits", [0, 3, 32])
def test_no_width_of_the_gaps_is_better_than_the_one_taken(value_bits):
    places = np.flatnonzero(np.random.default_rng(0).random(5000) < 0.08)
    width, entries = best_gap_width(places, value_bits)
    sizes = [count_by_hand(places, value_bits, number) for number in range(1, 17)]
    assert entries * (value_bits + width) == sizes[width - 1] == min(sizes)


def test_a_pruned_tensor_has_values_of_32_bits_and_a_clustered_one_as_many_as_it_needs():
    clustered = pruned(100, 100, 0.9, values=7)
    free = torch.where(clustered == 0, 0.0, torch.randn(100, 100))
    assert account_tensor("w", free).value_bits == 32
    assert account_tensor("w", clustered).value_bits == 3
    assert account_tensor("w", free).counted_bytes > account_tensor("w", clustered).counted_bytes


def test_nothing_is_counted_for_places_where_nothing_is_zero():
    row = account_tensor("w", torch.ones(10, 10))
    assert (row.kept, row.index_bits, row.value_bits, row.counted_bytes) == (100, 0, 0, 4)


def test_entropy_coding_takes_fewer_bits_than_fixed_fields():
    row = account_tensor("w", pruned(300, 100, 0.95, values=15))
    assert row.coded_value_bits < row.value_bits
    assert row.coded_bytes < row.counted_bytes
