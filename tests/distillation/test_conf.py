"""The configuration file builds the callback, and its values are the constructor's defaults."""

import inspect
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

import lightning_compress
from lightning_compress.distillation import Distillation, Ramp, Tap

CONF = Path(lightning_compress.__file__).parents[1] / "conf" / "callbacks" / "distillation.yaml"
TEACHER = {"_target_": "lightning_compress.distillation.Teacher", "source": "last.ckpt", "fold": True}


def build(**values) -> Distillation:
    return instantiate(OmegaConf.merge(OmegaConf.load(CONF), values))


def test_values_are_the_defaults_of_the_constructor():
    parameters = inspect.signature(Distillation).parameters
    values = OmegaConf.load(CONF)
    assert set(values) - {"_target_", "_convert_"} == set(parameters)
    for name, parameter in parameters.items():
        if name != "teachers":
            found = values[name] if name != "taps" else tuple(values[name])
            assert found == parameter.default, name


def test_teachers_taps_and_ramps_can_be_configured():
    tap = {"student": "network.fc1", "teacher": "network.fc1", "loss": "pkt"}
    callback = build(teachers=[TEACHER, "other.ckpt"], taps=[tap], temperature={"start": 8.0, "end": 2.0})
    assert [teacher.name for teacher in callback.bank.teachers] == ["last.ckpt", "other.ckpt"]
    assert callback.bank.teachers[0].fold
    assert callback.engine.taps == (Tap("network.fc1", "network.fc1", loss="pkt"),)
    assert callback.temperature == Ramp(8.0, 2.0)


def test_a_teacher_must_be_named():
    with pytest.raises(MissingMandatoryValue, match="teachers"):
        build()
