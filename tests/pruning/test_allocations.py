"""Every allocation that the package finds, and how masks follow from it: exact counts, nothing comes back."""

import pytest
import torch

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.allocations.global_ import global_
from lightning_compress.pruning.allocations.uniform import uniform
from lightning_compress.pruning.masks import keep_top
from lightning_compress.pruning.weights import choose_weights
from lightning_compress.registry import names, resolve

PACKAGE = "lightning_compress.pruning.allocations"
ALL = names(PACKAGE)
SHARES = [0, 1e-9, 0.1, 0.25, 0.5, 2 / 3, 0.9, 0.95, 0.99]


def scores(seed=0, sizes=((12, 5), (64,), (8, 4, 2), (40, 3), (11, 13))):
    generator = torch.Generator().manual_seed(seed)
    return {f"layer{k}": torch.rand(size, generator=generator) for k, size in enumerate(sizes)}


def nothing_masked(given):
    return {name: torch.ones_like(score, dtype=torch.bool) for name, score in given.items()}


def zeros(masks):
    return sum(int((~mask).sum()) for mask in masks.values())


def size(given):
    return sum(score.numel() for score in given.values())


def test_the_allocations_are_found():
    assert {"global", "uniform"} <= set(ALL)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ALL)
def test_counts_are_whole_and_add_up_exactly(name, share):
    allocation = resolve(name, PACKAGE)
    for seed in range(5):
        given = scores(seed)
        drop = round(share * size(given))
        counts = allocation(given, drop)
        assert list(counts) == list(given)
        assert sum(counts.values()) == drop
        assert all(type(count) is int and 0 <= count <= given[name].numel() for name, count in counts.items())


@pytest.mark.parametrize("name", ALL)
def test_one_tensor_of_any_size_gives_exactly_what_is_asked(name):
    allocation = resolve(name, PACKAGE)
    for n in [*range(1, 40), 997, 4096]:
        given = {"only": torch.rand(n)}
        for share in SHARES:
            drop = round(share * n)
            if drop < n:
                assert zeros(choose_weights(given, nothing_masked(given), allocation, drop)) == drop


@pytest.mark.parametrize("name", ALL)
def test_no_tensor_gives_fewer_when_more_is_asked(name):
    allocation = resolve(name, PACKAGE)
    given = scores(1, sizes=((6,), (6,), (2,), (15,), (5,)))
    before = allocation(given, 0)
    for drop in range(1, size(given) + 1):
        after = allocation(given, drop)
        assert all(after[name] >= before[name] for name in given), (drop, before, after)
        before = after


@pytest.mark.parametrize("name", ALL)
def test_what_is_pruned_stays_pruned_over_the_cuts_whatever_the_scores(name):
    allocation = resolve(name, PACKAGE)
    alive = nothing_masked(scores())
    for cut, share in enumerate(SHARES[:-2]):
        given = scores(seed=cut)
        drop = round(share * size(given))
        masks = choose_weights(given, alive, allocation, drop)
        assert zeros(masks) == drop
        assert not any(bool((masks[name] & ~alive[name]).any()) for name in given)
        alive = masks


@pytest.mark.parametrize("name", ALL)
def test_what_is_masked_stays_masked_where_sizes_have_changed_since(name):
    """Neurons that go take alive weights along: a layer can have more zeros than the allocation would give it now."""
    allocation = resolve(name, PACKAGE)
    given = scores()
    alive = nothing_masked(given)
    alive["layer0"].view(-1)[:50] = False
    alive["layer3"].view(-1)[::2] = False
    drop = zeros(alive) + 5
    masks = choose_weights(given, alive, allocation, drop)
    assert zeros(masks) == drop
    assert not any(bool((masks[name] & ~alive[name]).any()) for name in given)


@pytest.mark.parametrize("name", ALL)
def test_the_lowest_scores_of_a_tensor_go(name):
    given = scores()
    masks = choose_weights(given, nothing_masked(given), resolve(name, PACKAGE), size(given) // 2)
    for layer, mask in masks.items():
        assert mask.all() or given[layer][~mask].max() <= given[layer][mask].min()


@pytest.mark.parametrize("name", ALL)
def test_ties_fall_to_the_earlier_index_and_the_choice_is_repeatable(name):
    allocation = resolve(name, PACKAGE)
    given = {"a": torch.ones(5), "b": torch.ones(2, 4)}
    first = choose_weights(given, nothing_masked(given), allocation, 4)
    assert all(mask.flatten().long().diff().ge(0).all() for mask in first.values())  # masked first, then alive
    for _ in range(3):
        again = choose_weights(given, nothing_masked(given), allocation, 4)
        assert all(torch.equal(first[layer], again[layer]) for layer in given)


@pytest.mark.parametrize("name", ALL)
def test_a_layer_that_would_be_left_with_nothing_is_refused(name):
    given = {"small": torch.tensor([0.1]), "large": torch.rand(50) + 1}
    with pytest.raises(CompressionError, match=r"'small' has 1 weights.*exclude=\(\"small\",\)"):
        choose_weights(given, nothing_masked(given), resolve(name, PACKAGE), 45)


def test_global_is_one_ranking():
    given = scores()
    drop = 60
    everything = torch.cat([score.flatten() for score in given.values()])
    expected = keep_top(everything, drop).split([score.numel() for score in given.values()])
    masks = choose_weights(given, nothing_masked(given), global_, drop)
    assert all(torch.equal(mask.flatten(), part) for mask, part in zip(masks.values(), expected, strict=True))


@pytest.mark.parametrize("share", SHARES)
def test_uniform_is_the_same_share_to_the_nearest_entry(share):
    given = scores()
    counts = uniform(given, round(share * size(given)))
    assert all(abs(counts[name] - share * score.numel()) <= 1 for name, score in given.items())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda scores, drop: {},
        lambda scores, drop: dict.fromkeys(scores, 1),
        lambda scores, drop: {"layer0": drop + 1, "layer1": -1, "layer2": 0, "layer3": 0, "layer4": 0},
        lambda scores, drop: {"elsewhere": drop},
        lambda scores, drop: {**dict.fromkeys(scores, 0), "layer0": drop},
    ],
)
def test_an_allocation_that_does_not_add_up_is_refused(wrong):
    given = scores()
    with pytest.raises(CompressionError, match="allocation was to share 100 zeros"):
        choose_weights(given, nothing_masked(given), wrong, 100)


@pytest.mark.parametrize("drop", [0, 1, 7, 12])
def test_keep_top_drops_exactly_as_many(drop):
    for given in (torch.rand(3, 4), torch.zeros(12), torch.full((2, 6), -torch.inf)):
        mask = keep_top(given, drop)
        assert mask.shape == given.shape
        assert int((~mask).sum()) == drop
