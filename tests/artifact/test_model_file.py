"""Modules into files and back."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from artifact.coded import Everything, Quantized, pruned, same_bits, split
from plan.samples import Net, keep
from safetensors import safe_open
from torch import nn

from lightning_compress.artifact import (
    FormatError,
    ModelFile,
    inspect_compressed,
    load_compressed,
    save_compressed,
    unpack_state,
)
from lightning_compress.artifact.index import NAME
from lightning_compress.errors import CompressionError
from lightning_compress.plan import Plan, Record
from lightning_compress.zoo import LeNet300

CODERS = ["auto", "deflate", "huffman", "rans"]
GOLDEN = Path(__file__).parent / "golden"


def same_state(one, other):
    first, second = one.state_dict(), other.state_dict()
    return list(first) == list(second) and all(same_bits(first[name], second[name]) for name in first)


@pytest.fixture
def few_in_the_index(monkeypatch):
    """Tensors of more than 64 bytes get a place of their own in the outer file."""
    monkeypatch.setattr("lightning_compress.artifact.container.SMALL_BYTES", 64)


@pytest.mark.parametrize("coder", CODERS)
def test_everything_comes_back_bit_for_bit(tmp_path, coder):
    module = Everything()
    save_compressed(module, tmp_path / "m.lcz", coder=coder)
    assert same_state(load_compressed(tmp_path / "m.lcz", into=Everything(filled=False)), module)


def test_everything_comes_back_from_tensors_of_their_own(tmp_path, few_in_the_index):
    module = Everything()
    save_compressed(module, tmp_path / "m.lcz")
    index = ModelFile.open(tmp_path / "m.lcz").index
    assert index.plain
    assert index.coded
    assert same_state(load_compressed(tmp_path / "m.lcz", into=Everything(filled=False)), module)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("where", ["index", "own"])
def test_golden_files_of_version_1_are_read_for_ever(where, coder):
    module = load_compressed(GOLDEN / f"{where}_{coder}.lcz", into=Everything(filled=False))
    assert same_state(module, Everything())


@pytest.mark.parametrize("where", ["index", "own"])
def test_golden_files_of_rows_on_grids_of_their_own_are_read_for_ever(where):
    assert same_state(load_compressed(GOLDEN / f"{where}_rows.lcz", into=Quantized(filled=False)), Quantized())


def test_equal_modules_give_equal_files(tmp_path):
    digests = set()
    for name in "ab":
        save_compressed(Everything(), tmp_path / name, metrics={"b": 1.0, "a": 2.0}, metadata={"x": [1]})
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_tied_weights_are_stored_once_and_tied_again(tmp_path):
    class Tied(nn.Module):
        def __init__(self, tied):
            super().__init__()
            self.a, self.b = nn.Linear(50, 50), nn.Linear(50, 50)
            if tied:
                self.b.weight = self.a.weight

    sizes = [save_compressed(Tied(tied), tmp_path / str(tied)).bytes for tied in (True, False)]
    assert sizes[0] < 0.6 * sizes[1]
    loaded = load_compressed(tmp_path / "True", into=Tied(False))
    assert loaded.b.weight is loaded.a.weight
    with pytest.raises(CompressionError, match="tied in the network"):
        load_compressed(tmp_path / "False", into=Tied(True))


def test_a_pruned_network_comes_back_in_its_shape(tmp_path):
    net, fresh = Net(), Net()
    Record.of(net).apply(keep(0, 2, 3))
    save_compressed(net, tmp_path / "m.lcz")
    assert len(Plan.of(net)) == 1
    loaded = load_compressed(tmp_path / "m.lcz", into=fresh)
    assert Plan.of(loaded) == Plan.of(net)
    assert same_state(loaded, net)
    assert inspect_compressed(tmp_path / "m.lcz").plan == 1


def test_masks_come_back_from_the_zeros(tmp_path):
    net = LeNet300()
    with torch.no_grad():
        net.fc1.weight.copy_(pruned(300, 64, 0.9))
    save_compressed(net, tmp_path / "m.lcz")
    loaded = load_compressed(tmp_path / "m.lcz", into=LeNet300())
    assert torch.equal(loaded.fc1.weight == 0, net.fc1.weight == 0)


def test_metadata_metrics_and_class_are_in_the_file(tmp_path):
    save_compressed(LeNet300(), tmp_path / "m.lcz", metrics={"val_acc": 0.97}, metadata={"note": "ä", "seeds": [1, 2]})
    summary = inspect_compressed(tmp_path / "m.lcz")
    assert summary.class_name == "LeNet300"
    assert summary.metadata == {"metrics": '{"val_acc": 0.97}', "user": '{"note": "\\u00e4", "seeds": [1, 2]}'}


@pytest.mark.parametrize("metrics", [{"a": float("nan")}, {"a": object()}])
def test_metrics_that_are_no_json_are_refused(tmp_path, metrics):
    with pytest.raises(CompressionError, match="JSON"):
        save_compressed(LeNet300(), tmp_path / "m.lcz", metrics=metrics)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("buffer", "message"),
    [(torch.zeros(2, dtype=torch.complex128), "complex128"), (torch.zeros(2).to_sparse(), "dense")],
)
def test_what_a_file_cannot_hold_is_refused_by_name(tmp_path, buffer, message):
    module = nn.Module()
    module.register_buffer("strange", buffer)
    with pytest.raises(CompressionError, match=message) as caught:
        save_compressed(module, tmp_path / "m.lcz")
    assert "'strange'" in str(caught.value)


def test_an_unknown_coder_is_refused(tmp_path):
    with pytest.raises(CompressionError, match="Did you mean 'huffman'"):
        save_compressed(LeNet300(), tmp_path / "m.lcz", coder="hufman")


@pytest.mark.parametrize("other", [nn.Linear(64, 64), LeNet300(in_features=65), LeNet300().double()])
def test_another_network_is_refused_and_left_as_it_was(tmp_path, other):
    save_compressed(LeNet300(), tmp_path / "m.lcz")
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CompressionError):
        load_compressed(tmp_path / "m.lcz", into=other)
    assert all(same_bits(before[name], tensor) for name, tensor in other.state_dict().items())


def test_a_damaged_file_leaves_the_network_as_it_was(tmp_path, few_in_the_index):
    net = LeNet300()
    save_compressed(net, tmp_path / "m.lcz")
    data = bytearray((tmp_path / "m.lcz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "m.lcz").write_bytes(data)
    other = LeNet300()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(FormatError):
        load_compressed(tmp_path / "m.lcz", into=other)
    assert all(same_bits(before[name], tensor) for name, tensor in other.state_dict().items())


def test_a_failed_write_leaves_the_former_file(tmp_path, monkeypatch):
    save_compressed(LeNet300(), tmp_path / "m.lcz")
    before = (tmp_path / "m.lcz").read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="full"):
        save_compressed(LeNet300(), tmp_path / "m.lcz")
    assert (tmp_path / "m.lcz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.lcz"]


def test_a_file_that_reads_back_otherwise_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_compress.artifact.container._same_bits", lambda *_: False)
    with pytest.raises(FormatError, match="read back"):
        save_compressed(LeNet300(), tmp_path / "m.lcz")
    assert not list(tmp_path.iterdir())


def test_ordinary_tensors_are_readable_by_anybody(tmp_path, few_in_the_index):
    module = nn.Module()
    module.noise = nn.Parameter(torch.randint(-(2**31), 2**31, (300,), dtype=torch.int32).view(torch.float32))
    save_compressed(module, tmp_path / "m.lcz")
    with safe_open(tmp_path / "m.lcz", framework="pt") as file:
        assert same_bits(file.get_tensor("noise"), module.noise.data)


def test_unpack_gives_the_state_dict(tmp_path):
    module = Everything()
    save_compressed(module, tmp_path / "m.lcz")
    state = unpack_state(tmp_path / "m.lcz")
    assert set(state) == set(module.state_dict())
    assert all(same_bits(state[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("few", [False, True])
def test_every_byte_is_accounted_for(tmp_path, monkeypatch, few):
    if few:
        monkeypatch.setattr("lightning_compress.artifact.container.SMALL_BYTES", 64)
    summary = save_compressed(Everything(), tmp_path / "m.lcz")
    assert summary.bytes == (tmp_path / "m.lcz").stat().st_size
    header, tensors = split((tmp_path / "m.lcz").read_bytes())
    assert 0 < summary.bytes - sum(row.bytes for row in summary.tensors) <= len(tensors[NAME]) + len(str(header)) + 16
    assert all(min(row.mask, row.values, row.codebook, row.tables, row.headers) >= 0 for row in summary.tensors)


def test_headers_tables_and_checksums_of_lenet_take_at_most_200_bytes(tmp_path):
    net = LeNet300()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 2:
                parameter.copy_(pruned(*parameter.shape, 0.92, values=9))
    summary = save_compressed(net, tmp_path / "m.lcz")
    assert summary.overhead <= 200
    assert summary.ratio == pytest.approx(4 * 50_610 / summary.bytes)


def test_overhead_of_a_large_file_is_at_most_half_a_percent(tmp_path):
    net = nn.Sequential(*[nn.Linear(1536, 1536, bias=False) for _ in range(3)])
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            parameter.copy_(pruned(1536, 1536, 0.5, seed=number))
    summary = save_compressed(net, tmp_path / "m.lcz")
    assert summary.bytes > 10**6
    assert summary.overhead <= 0.005 * summary.bytes


def test_the_file_is_read_without_lightning(tmp_path):
    save_compressed(nn.Linear(9, 9), tmp_path / "m.lcz")
    code = (
        "import sys; from torch import nn; from lightning_compress.artifact import load_compressed;"
        f"load_compressed({str(tmp_path / 'm.lcz')!r}, into=nn.Linear(9, 9)); print('lightning' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.slow
@pytest.mark.parametrize("action", ["save", "load"])
def test_memory_above_the_module_is_at_most_125_percent_of_the_largest_tensor(action):
    benchmark = Path(__file__).parents[1] / "benchmarks" / "model_file.py"
    done = subprocess.run([sys.executable, benchmark, "memory", action], check=True, capture_output=True, text=True)
    assert 0 < float(done.stdout.split()[1]) <= 1.25
