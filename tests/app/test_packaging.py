"""The wheel in a clean environment: the command finds its recipes, and a stranger's Hydra app finds our groups."""

import json
import os
import subprocess
import sys
import venv
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
APP = """
import json, sys
import hydra
import lightning_compress

@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(config):
    callback = hydra.utils.instantiate(config.callbacks)
    found = {"type": type(callback).__qualname__, "final": callback.final, "recover": repr(callback.recover)}
    print(json.dumps({**found, "target": config.callbacks._target_, "home": lightning_compress.__file__}))

main()
"""


def is_installed(name):
    return any(distribution.name == name for distribution in distributions())


def run(*arguments, cwd, check=True):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A virtual environment with the wheel; the dependencies are those of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    run(sys.executable, "-c", build, str(folder), cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        str(wheel),
        cwd=folder,
    )
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(str(Path(torch.__file__).parents[1]))
    return folder / "venv"


@pytest.fixture
def stranger(tmp_path):
    """A Hydra app that has never heard of this package."""
    (tmp_path / "conf" / "callbacks").mkdir(parents=True)
    (tmp_path / "conf" / "config.yaml").write_text("seed: 1\nhydra: {run: {dir: out}, output_subdir: null}\n")
    (tmp_path / "conf" / "callbacks" / "replay.yaml").write_text("mine: true\n")
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def test_foreign_app_gets_the_callback_with_its_gate(clean, stranger):
    arguments = ("+callbacks=weight_pruning", "+recovery@callbacks.recover=default", "callbacks.sparsity=0.5")
    found = json.loads(run(clean / "bin" / "python", "app.py", *arguments, cwd=stranger).stdout)
    assert found["type"] == "WeightPruning"
    assert found["target"] == "lightning_compress.WeightPruning"
    assert found["final"] == 0.5
    assert found["recover"].startswith("Recovery(monitor='val_acc'")
    assert found["home"].startswith(str(clean))


def test_foreign_app_keeps_its_own_files_first(clean, stranger):
    done = run(clean / "bin" / "python", "app.py", "+callbacks=replay", "--cfg", "job", cwd=stranger)
    assert "mine: true" in done.stdout
    assert "iterative_pruning" not in done.stdout


def test_command_of_the_wheel_finds_its_recipes_and_runs(clean, tmp_path):
    command = clean / "bin" / "lightning-compress"
    assert "deep_compression, deep_compression_conv, iterative_pruning" in run(command, "--help", cwd=tmp_path).stdout
    wrong = run(command, "recipe=iterativ_pruning", cwd=tmp_path, check=False)
    assert wrong.returncode == 1
    assert "Did you mean 'iterative_pruning'?" in wrong.stderr
    epochs = [f"stages.{stage}.epochs=1" for stage in ("dense", "neurons", "prune", "cluster")]
    run(command, *epochs, "logger=csv", cwd=tmp_path)
    assert list(tmp_path.rglob("report.html"))
    assert list(tmp_path.rglob("model.lcz"))


@pytest.mark.skipif(not is_installed("lightning-compress"), reason="runs from a checkout that is not installed")
def test_groups_are_found_in_this_environment(stranger):
    found = json.loads(run(sys.executable, "app.py", "+callbacks=neuron_pruning", cwd=stranger).stdout)
    assert found["type"] == "NeuronPruning"
