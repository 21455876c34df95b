"""Heads of ``nn.MultiheadAttention`` taken out in real fits: resumed, replayed, and beside the other callbacks."""

import ast

import lightning as L
import pytest
import torch
from support import User, digits, every_epoch, fit, same
from torch import nn

import lightning_compress as lc
from lightning_compress.errors import CompressionError
from lightning_compress.training import Schedule


class Encoder(User):
    """Reads a digit row by row."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.1, batch_first=True)
        parts = nn.Unflatten(1, (8, 8)), nn.Linear(8, 16), nn.TransformerEncoder(layer, 1), nn.Flatten()
        self.network = nn.Sequential(*parts, nn.Linear(128, 10))

    @property
    def attention(self):
        return self.network[2].layers[0].self_attn


def pruning(amount=0.5, **options):
    schedule = Schedule("linear", start=0, end=2, rounds=2)
    options = {"schedule": schedule, "max_step": 0.5, "exclude": ["network.2.layers.0.linear1"], **options}
    return lc.NeuronPruning(amount, **options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    L.seed_everything(1)
    module = Encoder()
    fit(module, pruning(criterion="taylor"), every_epoch(folder), max_epochs=3)
    return module, folder


def test_heads_go_in_mid_fit_and_a_resumed_fit_ends_the_same(uninterrupted):
    module, folder = uninterrupted
    assert (module.attention.num_heads, module.attention.in_proj_weight.shape) == (2, (24, 16))
    resumed = Encoder()
    fit(resumed, pruning(criterion="taylor"), max_epochs=3, ckpt_path=folder / "epoch=1.ckpt")
    assert same(dict(resumed.state_dict()), dict(module.state_dict()))
    assert type(resumed.attention) is type(module.attention)


def test_a_checkpoint_and_a_file_give_the_network_back(uninterrupted, tmp_path):
    module, folder = uninterrupted
    x = digits()[0][:5]
    with torch.no_grad():
        expected = module.eval()(x)
        assert torch.equal(lc.load_from_checkpoint(Encoder, folder / "epoch=2.ckpt").eval()(x), expected)
        lc.save_compressed(module, tmp_path / "heads.lcz")
        assert torch.equal(lc.load_compressed(tmp_path / "heads.lcz", into=Encoder()).eval()(x), expected)


def test_heads_go_beside_single_weights_and_fake_quantization():
    module = Encoder()
    quantization = lc.QuantizationAwareTraining(8, 8, start=0)
    weights = lc.WeightPruning(0.5, schedule=Schedule("linear", start=0, end=2, rounds=2), max_step=0.5)
    fit(module, pruning(), weights, quantization, max_epochs=3)
    assert module.attention.num_heads == 2
    assert weights.reached == pytest.approx(0.5, abs=1e-3)
    assert float((module.attention.in_proj_weight == 0).float().mean()) > 0.1


def test_what_macs_are_gone_is_counted_with_the_heads():
    module = Encoder()
    before = lc.measure(module, digits()[0][:8]).macs
    one = pruning(0.1, of="macs")
    fit(module, one, max_epochs=3, limit_train_batches=3)
    assert one.reached == pytest.approx(1 - lc.measure(module, digits()[0][:8]).macs / before, abs=1e-9)
    assert module.attention.num_heads < 4


def test_heads_are_aligned_by_their_entries_not_by_their_number():
    module = Encoder()
    fit(module, pruning(0.25, round_to=4), max_epochs=3, limit_train_batches=3)
    assert module.attention.num_heads == 3


def test_weights_that_attention_reads_itself_are_all_named_before_the_fit():
    with pytest.raises(
        CompressionError, match=r"self_attn.in_proj_weight', '\S+self_attn.out_proj.weight' cannot be"
    ) as no:
        fit(Encoder(), lc.WeightPruning(0.5, criterion="wanda"), max_epochs=1)
    exclude = ast.literal_eval(str(no.value).partition("exclude=")[2].removesuffix("."))
    fit(Encoder(), lc.WeightPruning(0.5, criterion="wanda", exclude=exclude, max_step=0.6), max_epochs=2)


@pytest.mark.parametrize("criterion", ["apoz", "wanda"])
def test_a_criterion_that_looks_at_inputs_says_which_layers_have_none(criterion):
    with pytest.raises(CompressionError, match=r"'network.2.layers.0.self_attn' these are no Linear.*exclude=\("):
        fit(Encoder(), pruning(criterion=criterion), max_epochs=3)
