"""ONNX files give the network's own answers, at any number of samples, whole or in segments."""

import copy

import numpy as np
import pytest
import torch
from dynamic.exiting import NETWORKS, with_exits
from dynamic.test_depth import Residual
from support import ConvNet, User, digits, fit, mlp, same
from torch import nn

import lightning_compress as lc
from lightning_compress.dynamic import ExitInference, calibrate_exits, export_depth
from lightning_compress.errors import CompressionError
from lightning_compress.export import ExitRouter, export_exits, export_onnx
from lightning_compress.export.onnx_file import open_session
from lightning_compress.surgery import TracingInput
from lightning_compress.zoo import LeNet5, SmallResNet

IMAGES, LABELS = digits()
PICTURES = IMAGES.view(-1, 1, 8, 8)


def run(path, images):
    session = open_session(path)
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


@pytest.mark.parametrize(
    ("build", "images"),
    [(mlp, IMAGES), (ConvNet, IMAGES), (LeNet5, PICTURES), (SmallResNet, PICTURES), (NETWORKS["tokens"][0], IMAGES)],
    ids=["mlp", "conv", "lenet", "resnet", "transformer"],
)
def test_the_file_answers_like_the_network_at_any_batch_size(build, images, tmp_path):
    torch.manual_seed(0)
    network = build().train()
    state = copy.deepcopy(network.state_dict())
    path = export_onnx(network, tmp_path / "network.onnx", images[:4])
    assert network.training
    assert same(dict(state), dict(network.state_dict()))
    network.eval()
    for number in (1, 7, 64):
        with torch.no_grad():
            assert torch.allclose(run(path, images[:number]), network(images[:number]), atol=1e-4)


def test_a_fixed_batch_size_is_possible(tmp_path):
    path = export_onnx(mlp(), tmp_path / "network.onnx", IMAGES[:3], dynamic_batch=False)
    assert run(path, IMAGES[:3]).shape == (3, 10)


def test_a_pruned_lightning_module_can_be_exported(tmp_path):
    module = User("conv")
    fit(module, lc.NeuronPruning(0.4), max_epochs=2)
    path = export_onnx(module, tmp_path / "network.onnx", IMAGES[:4])
    with torch.no_grad():
        assert torch.allclose(run(path, IMAGES[:9]), module.eval()(IMAGES[:9]), atol=1e-4)


def test_a_network_with_fewer_blocks_can_be_exported(tmp_path):
    small = export_depth(Residual().eval(), 1, tracing=TracingInput("", (IMAGES[:4],), {}))
    path = export_onnx(small, tmp_path / "network.onnx", IMAGES[:4])
    with torch.no_grad():
        assert torch.allclose(run(path, IMAGES[:9]), small(IMAGES[:9]), atol=1e-4)


class Moody(nn.Module):
    def forward(self, x):
        return x * (2.0 if float(x.sum()) > 0 else 3.0)


def test_a_network_that_no_exporter_can_write_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(CompressionError, match="cannot be written as ONNX"):
        export_onnx(Moody(), tmp_path / "network.onnx", torch.tensor([[-1.0], [0.5]]))
    assert list(tmp_path.iterdir()) == []


def test_an_example_is_needed(tmp_path):
    with pytest.raises(CompressionError, match="example"):
        export_onnx(mlp(), tmp_path / "network.onnx", ())


@pytest.mark.parametrize("confidence", ["margin", "patience"])
@pytest.mark.parametrize("kind", ["conv", "tokens", "vector"])
def test_segments_and_router_answer_like_the_network_with_exits(kind, confidence, tmp_path):
    network = with_exits(kind)
    calibrate_exits(network, [(IMAGES[:300], LABELS[:300])], macs=0.95, confidence=confidence)
    if confidence == "patience":
        network.early_exits.thresholds.fill_(2.0)
    state = copy.deepcopy(network.state_dict())
    export_exits(network, tmp_path, IMAGES[:4])
    assert same(dict(state), dict(network.state_dict()))
    router, inference = ExitRouter(tmp_path), ExitInference(network)
    for number in (1, 50):
        expected, found = inference.predict(IMAGES[300 : 300 + number]), router(IMAGES[300 : 300 + number].numpy())
        assert np.array_equal(found.exits, expected.exits.numpy())
        assert np.allclose(found.logits, expected.logits.numpy(), atol=1e-4)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.onnx")) < 200_000


def test_a_segment_holds_only_its_own_weights(tmp_path):
    import onnx

    network = with_exits("conv")
    export_exits(network, tmp_path, IMAGES[:4])
    sizes = [
        sum(int(np.prod(one.dims)) for one in onnx.load(tmp_path / f"segment{number}.onnx").graph.initializer)
        for number in range(3)
    ]
    stages = [sum(p.numel() for p in stage.parameters()) for stage in network.stages]
    heads = [sum(p.numel() for p in head.parameters()) for head in network.early_exits.heads]
    for size, stage, head in zip(sizes, stages, [*heads, 170], strict=True):
        assert size <= (stage + head) * 1.2 + 64


def test_a_folder_without_segments_is_refused(tmp_path):
    with pytest.raises(CompressionError, match="exits.json"):
        ExitRouter(tmp_path)
