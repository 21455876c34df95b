"""Networks made ready for a runtime compute what they compute in PyTorch."""

import pytest
import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.measure import runner


def test_a_session_runs_an_encoder_that_torch_would_run_in_one_operation():
    pytest.importorskip("onnxruntime")
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    network, value = nn.Sequential(nn.TransformerEncoder(layer, 1), nn.Linear(8, 2)).eval(), torch.randn(2, 3, 8)
    assert torch.backends.mha.get_fastpath_enabled()
    found = torch.from_numpy(runner(network, [value], "onnxruntime")()[0])
    assert torch.backends.mha.get_fastpath_enabled()
    torch.testing.assert_close(found, network(value), rtol=1e-4, atol=1e-5)


def test_a_network_that_cannot_be_exported_is_refused_without_a_word_on_the_screen(capsys):
    pytest.importorskip("onnxruntime")

    class Odd(nn.Module):
        def forward(self, value):
            return torch.linalg.eigvals(value).real

    with pytest.raises(CompressionError, match="Odd cannot be exported to ONNX.*runtime='eager'"):
        runner(Odd(), [torch.eye(3)], "onnxruntime")
    assert capsys.readouterr().out == ""


def test_an_unknown_runtime_is_refused():
    with pytest.raises(CompressionError, match="Did you mean 'onnxruntime'"):
        runner(nn.Linear(1, 1), [torch.zeros(1)], "onnx")
