"""The file, written while the network trains; and the command that looks at it."""

import pytest
from support import User, fit, same

from lightning_compress.artifact import inspect_compressed, load_compressed
from lightning_compress.artifact.callback import SaveCompressed
from lightning_compress.artifact.command import inspect, unpack, verify
from lightning_compress.errors import CompressionError
from lightning_compress.pruning import WeightPruning


def test_only_epochs_on_target_are_saved_and_the_last_one_is_the_network(tmp_path):
    module = User()
    fit(module, WeightPruning(0.8, max_step=0.9), saver := SaveCompressed(tmp_path, monitor="val_acc"), max_epochs=4)
    assert saver.best_path.exists()
    loaded = load_compressed(saver.last_path, into=User())
    assert same(loaded.state_dict(), module.state_dict())
    for path in (saver.best_path, saver.last_path):
        weights = [p for n, p in load_compressed(path, into=User()).named_parameters() if p.dim() == 2]
        assert sum(int((w == 0).sum()) for w in weights) >= round(0.8 * sum(w.numel() for w in weights))
        assert "val_acc" in inspect_compressed(path).metadata["metrics"]


def test_a_metric_that_nobody_logs_is_refused(tmp_path):
    with pytest.raises(CompressionError, match="Did you mean 'val_acc'"):
        fit(User(), SaveCompressed(tmp_path, monitor="val_ac"), max_epochs=1)


@pytest.mark.parametrize("arguments", [{"mode": "maximum"}, {"coder": "zip"}])
def test_unknown_names_are_refused_at_once(tmp_path, arguments):
    with pytest.raises(CompressionError, match="Known"):
        SaveCompressed(tmp_path, **arguments)


def test_the_command_inspects_verifies_and_unpacks(tmp_path, capsys):
    from safetensors.torch import load_file

    from lightning_compress.artifact import save_compressed

    module = User()
    summary = save_compressed(module, tmp_path / "m.lcz")
    for verb in (inspect, verify, unpack):
        verb([str(tmp_path / "m.lcz")])
    printed = capsys.readouterr().out
    assert f"{summary.bytes:,} bytes" in printed
    assert "all checksums right" in printed
    assert same(load_file(tmp_path / "m.safetensors"), dict(sorted(module.state_dict().items())))
    with pytest.raises(CompressionError, match="exists already"):
        unpack([str(tmp_path / "m.lcz")])
    with pytest.raises(CompressionError, match="no file"):
        inspect(["gone.lcz"])
