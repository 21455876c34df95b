"""Two callbacks that would give one tensor its values are refused before the first step, both by name."""

import pytest
from support import User, fit

from lightning_compress.errors import CompressionError
from lightning_compress.quantization import BinaryConnect, QuantizationAwareTraining, TernaryWeights, WeightClustering


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("other", [WeightClustering, BinaryConnect, TernaryWeights])
def test_fake_quantization_and_few_values_on_one_tensor_are_refused(other, reverse):
    callbacks = [QuantizationAwareTraining(4, 4), other()]
    module = User()
    classes = [type(part) for part in module.modules()]
    with pytest.raises(CompressionError, match=rf"QuantizationAwareTraining.*{other.__name__}|{other.__name__}.*Quant"):
        fit(module, *(callbacks[::-1] if reverse else callbacks), max_epochs=1)
    assert [type(part) for part in module.modules()] == classes


@pytest.mark.parametrize("other", [WeightClustering, BinaryConnect, TernaryWeights])
def test_on_different_tensors_they_work_together(other):
    quantization = QuantizationAwareTraining(4, None, exclude=["network.4"])
    module = User()
    fit(module, other(targets=["network.4"]), quantization, max_epochs=2)
    assert set(quantization.quantizers["weights"]) == {"network.0.weight", "network.6.weight"}
