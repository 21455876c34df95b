"""Whole heads of ``nn.MultiheadAttention``: gone for good, the same as if they were zero, and back."""

import copy
import io
import itertools

import pytest
import torch
from support import same
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.plan import Plan, Record
from lightning_compress.plan.fewer_heads import FewerHeads
from lightning_compress.surgery import TracingInput, find_groups, mask_removed_, merge

LENGTH, BATCH, WIDTH = 5, 3, 12
KINDS = {
    "packed": {},
    "batch first, without biases": {"batch_first": True, "bias": False},
    "other keys and values": {"kdim": 7, "vdim": 5},
    "other keys, batch first, without biases": {"kdim": 7, "vdim": 5, "bias": False, "batch_first": True},
    "learned and zero keys": {"add_bias_kv": True, "add_zero_attn": True},
}
CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
PADDING = torch.zeros(BATCH, LENGTH, dtype=torch.bool).index_fill_(1, torch.tensor([LENGTH - 1]), True)
CALLS = [
    {},
    {"need_weights": False},
    {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False},
    {"attn_mask": torch.linspace(-1, 1, LENGTH**2).view(LENGTH, LENGTH), "key_padding_mask": PADDING.float()},
]


class Attending(nn.Module):
    """Attention to itself, or to something of other widths, behind a Linear layer and before one."""

    def __init__(self, **options):
        super().__init__()
        widths = options.get("kdim", WIDTH), options.get("vdim", WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, **options)
        self.keys, self.values, self.leave = nn.Linear(WIDTH, widths[0]), nn.Linear(WIDTH, widths[1]), nn.Linear(12, 2)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x, **options):
        return self.leave(self.attention(x, self.keys(x), self.values(x), **options)[0])


def cut_by_half(network, group):
    """The network with the second and the fourth head zero, and without them; and what takes them back."""
    edit = group.keep(torch.tensor([0, 2]))
    masked, cut = copy.deepcopy(network), copy.deepcopy(network)
    mask_removed_(masked, edit)
    return masked, cut, edit.apply(cut)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_head_it_computes_what_it_computed_with_that_head_zero(kind):
    torch.manual_seed(0)
    network = Attending(**KINDS[kind])
    first = KINDS[kind].get("batch_first", False)
    x = torch.randn((BATCH, LENGTH, WIDTH) if first else (LENGTH, BATCH, WIDTH))
    group = find_groups(network, TracingInput("", (x,), {})).named("attention")
    assert group.size == 4
    masked, cut, inverse = cut_by_half(network, group)
    assert (cut.attention.num_heads, cut.attention.head_dim, cut.attention.embed_dim) == (2, 3, WIDTH)
    assert cut.attention.out_proj.weight.shape == (WIDTH, 6)
    assert list(cut.state_dict()) == list(network.state_dict())
    for options in CALLS:
        for train in (True, False):
            expected, found = (one.train(train)(x, **options) for one in (masked, cut))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    one = x[0] if first else x[:, 0]
    torch.testing.assert_close(cut(one), masked(one), rtol=1e-5, atol=1e-5)
    inverse.apply(cut)
    assert type(cut.attention) is nn.MultiheadAttention
    torch.testing.assert_close(cut(x), masked(x), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_heads_that_are_left():
    network = Attending()
    x = torch.randn(LENGTH, BATCH, WIDTH)
    masked, cut, _ = cut_by_half(network, find_groups(network, TracingInput("", (x,), {})).named("attention"))
    for one in (masked, cut):
        one(x).square().sum().backward()
    rows = torch.cat([torch.arange(3) + start for start in (0, 6, 12, 18, 24, 30)])
    found, expected = cut.attention.in_proj_weight.grad, masked.attention.in_proj_weight.grad[rows]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_dropout_of_attention_is_that_of_torch():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(WIDTH, 4, dropout=0.5)
    ours, x = copy.deepcopy(attention), torch.randn(LENGTH, BATCH, WIDTH)
    ours.__class__ = FewerHeads
    for need in (True, False):
        torch.manual_seed(1)
        expected = attention(x, x, x, need_weights=need)
        torch.manual_seed(1)
        found = ours(x, x, x, need_weights=need)
        assert same(list(found), list(expected))


class Encoder(nn.Module):
    def __init__(self, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 4, 16, **options)
        self.layers, self.leave = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True), nn.Linear(8, 2)

    def forward(self, x, **options):
        return self.leave(self.layers(x, **options))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("first", [True, False])
def test_encoders_lose_heads_and_still_take_padded_sequences_in_evaluation(first):
    """Where ``nn.TransformerEncoder`` takes its fused path, and gives it sequences of unequal lengths."""
    network, x = Encoder(batch_first=first, dropout=0.0), torch.randn(5, 5, 8)
    padding = torch.arange(5) >= torch.tensor([5, 3, 5, 1, 4])[:, None]
    groups = find_groups(network, TracingInput("", (x,), {}))
    names = [f"layers.layers.{number}.self_attn" for number in range(2)]
    for chosen in (names[:1], names[1:], names):
        edit = merge([groups.named(name).keep(torch.tensor([1, 2, 3])) for name in chosen])
        masked, cut = copy.deepcopy(network), copy.deepcopy(network)
        mask_removed_(masked, edit)
        edit.apply(cut)
        for options, train in itertools.product(({}, {"src_key_padding_mask": padding}), (True, False)):
            with torch.no_grad():
                expected, found = (one.train(train)(x, **options) for one in (masked, cut))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_decoder_loses_heads_of_both_its_attentions():
    class Translator(nn.Module):
        def __init__(self):
            super().__init__()
            self.decode, self.leave = nn.TransformerDecoderLayer(8, 4, 16, batch_first=True), nn.Linear(8, 2)

        def forward(self, x):
            return self.leave(self.decode(x, x.flip(1)))

    groups = find_groups(Translator(), TracingInput("", (torch.randn(2, 5, 8),), {}))
    assert {"decode.self_attn", "decode.multihead_attn"} <= {group.name for group in groups}


def test_heads_whose_weights_are_a_result_stay():
    class Shown(Attending):
        def forward(self, x):
            return self.attention(x, x, x)

    groups = find_groups(Shown(), TracingInput("", (torch.randn(LENGTH, BATCH, WIDTH),), {}))
    with pytest.raises(CompressionError, match="No units of 'attention' can be taken out"):
        groups.named("attention")


def test_an_attention_of_somebody_elses_making_is_refused_by_name():
    class Own(nn.MultiheadAttention):
        def forward(self, x):
            return super().forward(x, x, x)[0]

    network = nn.Sequential(Own(WIDTH, 4), nn.Linear(WIDTH, 2))
    groups = find_groups(network, TracingInput("", (torch.randn(LENGTH, BATCH, WIDTH),), {}))
    assert "Own may do with its heads what no rule knows of" in groups.skipped["0"]


def test_a_mask_for_each_of_the_former_heads_is_refused():
    network, x = Attending(), torch.randn(LENGTH, BATCH, WIDTH)
    _, cut, _ = cut_by_half(network, find_groups(network, TracingInput("", (x,), {})).named("attention"))
    assert cut(x, attn_mask=torch.zeros(BATCH * 2, LENGTH, LENGTH)).shape == (LENGTH, BATCH, 2)
    with pytest.raises(CompressionError, match="12 masks for a batch of 3 with 2 heads"):
        cut(x, attn_mask=torch.zeros(BATCH * 4, LENGTH, LENGTH))


def test_a_failed_record_and_a_pickle_keep_the_class_that_the_heads_ask_for():
    network, x = Attending(), torch.randn(LENGTH, BATCH, WIDTH)
    edit = find_groups(network, TracingInput("", (x,), {})).named("attention").keep(torch.tensor([3]))
    Record.of(network).apply(edit)
    fresh = Attending()
    Plan.of(network).apply_to(fresh)
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(fresh(x), network(x))
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), network(x))
    assert "attention" in find_groups(fresh, TracingInput("", (x,), {})).skipped  # one head is left
    network = Attending()
    Record.of(network).followers.append(Refusing())
    with pytest.raises(RuntimeError, match="no"):
        Record.of(network).apply(edit)
    assert type(network.attention) is nn.MultiheadAttention
    assert network(x).shape == (LENGTH, BATCH, 2)


class Refusing:
    def follow(self, edit):
        raise RuntimeError("no")
