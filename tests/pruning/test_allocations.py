"""Every allocation that the package finds, and how masks follow from it: exact counts, nothing comes back."""

import pytest
import torch

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.allocations.global_ import global_
from lightning_compress.pruning.allocations.uniform import uniform
from lightning_compress.pruning.evidence import needs_of
from lightning_compress.pruning.overrides import check_overrides, split_overrides, with_overrides
from lightning_compress.pruning.sensitivity import Sensitivity
from lightning_compress.pruning.threshold import keep_top
from lightning_compress.pruning.weights import choose_weights
from lightning_compress.registry import names
from lightning_compress.registry import resolve as find

PACKAGE = "lightning_compress.pruning.allocations"
ALL = names(PACKAGE)
SHARES = [0, 1e-9, 0.1, 0.25, 0.5, 2 / 3, 0.9, 0.95, 0.99]


def resolve(name, package):
    """The allocation; one that needs the curves of a scan gets some, which differ from tensor to tensor."""
    allocation = find(name, package)
    if "curves" not in needs_of(allocation):
        return allocation

    def with_curves(scores, drop):
        costs = {layer: {0.5: 0.01 * (k % 3), 0.9: 0.1 + 0.3 * (k % 3)} for k, layer in enumerate(sorted(scores))}
        curves = Sensitivity(costs, {layer: score.numel() for layer, score in scores.items()})
        return allocation(scores, drop, curves=curves)

    return with_curves


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


@pytest.mark.parametrize("name", [name for name in ALL if name in ("global", "uniform")])
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


@pytest.mark.parametrize("drop", [1, 100, 260, 280])
def test_lamp_leaves_each_tensor_its_largest_entry(drop):
    given = {name: score * 10 ** (-2 * k) for k, (name, score) in enumerate(scores().items())}
    masks = choose_weights(given, nothing_masked(given), resolve("lamp", PACKAGE), drop)
    assert all(mask.flatten()[given[name].argmax()] for name, mask in masks.items())


def test_lamp_ranks_as_the_paper_defines_it():
    given = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([10.0, 1.0])}
    table = {}
    for layer, score in given.items():
        for k, one in enumerate(score.tolist()):
            table[layer, k] = one**2 / sum(other**2 for other in score.tolist() if other >= one)
    for drop in range(4):
        lowest = {place[0] for place in sorted(table, key=table.get)[:drop]}
        counts = find("lamp", PACKAGE)(given, drop)
        assert {layer for layer, count in counts.items() if count} == lowest


def test_erk_keeps_in_proportion_to_the_dimensions_and_never_more_than_there_is():
    given = {"wide": torch.zeros(50, 100), "kernel": torch.zeros(10, 10, 3, 3), "tiny": torch.zeros(2, 3)}
    counts = find("erk", PACKAGE)(given, 5000)
    assert counts["tiny"] == 0
    kept = {name: score.numel() - counts[name] for name, score in given.items()}
    assert kept["wide"] / kept["kernel"] == pytest.approx(150 / 26, rel=0.01)


def test_sensitivity_takes_more_where_it_costs_less():
    given = {"cheap": torch.zeros(1000), "dear": torch.zeros(1000)}
    costs = {"cheap": {0.5: 0.001, 0.9: 0.01}, "dear": {0.5: 0.1, 0.9: 1.0}}
    curves = Sensitivity(costs, dict.fromkeys(given, 1000))
    counts = find("sensitivity", PACKAGE)(given, 1000, curves=curves)
    assert counts["cheap"] > 800


def test_shares_given_by_name_are_kept_and_the_rest_is_allocated():
    given = scores()
    rest, shares = split_overrides({"layer0": 0.1, "layer3*": 0.0, "default": "uniform"})
    assert rest == "uniform"
    allocation = with_overrides(uniform, shares, final=0.6)
    drop = round(0.6 * size(given))
    counts = allocation(given, drop)
    assert sum(counts.values()) == drop
    assert counts["layer0"] == 6
    assert counts["layer3"] == 0
    others = [counts[name] / given[name].numel() for name in ("layer1", "layer2", "layer4")]
    assert max(others) - min(others) < 0.02
    half = allocation(given, drop // 2)
    assert half["layer0"] == 3
    assert sum(half.values()) == drop // 2


def test_shares_that_cannot_add_up_are_refused():
    with pytest.raises(CompressionError, match="shares given by name"):
        with_overrides(uniform, {"*": 0.1}, final=0.5)(scores(), 100)
    with pytest.raises(CompressionError, match=r"in \[0, 1\)"):
        split_overrides({"fc": 1.0})
    with pytest.raises(CompressionError, match="'fd' matches no weight. Did you mean"):
        check_overrides({"fc": 8, "head": 4}, {"fd": 0.5}, 0.5)
    with pytest.raises(CompressionError, match="10 are left for the other 1 weights"):
        check_overrides({"fc": 8, "head": 4}, {"fc": 0.1}, 0.9)


def test_shares_given_for_every_weight_are_rounded_to_the_sum():
    given = scores()
    for share in (0.3, 0.5, 0.7):
        allocation = with_overrides(uniform, {"*": 0.7}, final=0.7)
        drop = round(share * size(given))
        counts = allocation(given, drop)
        assert sum(counts.values()) == drop
        assert all(abs(counts[name] / one.numel() - share) < 0.02 for name, one in given.items())


def test_the_threshold_is_exact_over_many_chunks_and_ties(monkeypatch):
    from lightning_compress.pruning import threshold

    monkeypatch.setattr(threshold, "CHUNK", 7)
    generator = torch.Generator().manual_seed(0)
    for values in (
        torch.randint(-3, 3, (101,), generator=generator).float(),
        torch.randn(101, generator=generator) * 1e-39,  # denormal
        torch.tensor([0.0, -0.0, 1.0, float("inf"), -float("inf"), -1.0] * 9),
    ):
        for drop in range(values.numel() + 1):
            expected = torch.ones(values.numel(), dtype=torch.bool)
            expected[values.argsort(stable=True)[:drop]] = False
            assert torch.equal(keep_top(values, drop), expected)
            parts = {"a": values[:40], "b": values[40:]}
            counts = global_(parts, drop)
            assert counts == {"a": int((~expected[:40]).sum()), "b": int((~expected[40:]).sum())}


def test_a_global_ranking_holds_the_scores_of_one_tensor_at_a_time():
    from lightning_compress.pruning.weights import Scores

    held, most = [0], [0]

    class Score(torch.Tensor):
        def __del__(self):
            held[0] -= 1

    def score(name):
        held[0] += 1
        most[0] = max(most[0], held[0])
        return torch.rand(50, generator=torch.Generator().manual_seed(int(name))).as_subclass(Score)

    counts = global_(Scores([str(k) for k in range(10)], score), 250)
    assert sum(counts.values()) == 250
    assert most[0] <= 2
