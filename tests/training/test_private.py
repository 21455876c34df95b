"""The canary: every private Lightning name that we use exists and does what we use it for."""

import importlib
import re
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback
from support import User, fit

import lightning_compress
from lightning_compress.training import private

PACKAGE = Path(lightning_compress.__file__).parent


class Canary(Callback):
    missing = ()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        roots = {"trainer": trainer, "module": pl_module}
        for dotted in private.PRIVATE_NAMES:
            root, *names = dotted.split(".")
            if root not in roots or "ddp" in dotted or "_setup_model" in dotted:
                continue
            value = roots[root]
            for name in names:
                if not hasattr(value, name):
                    self.missing = (*self.missing, dotted)
                    break
                value = getattr(value, name)


def test_every_private_name_exists_in_a_fit():
    canary = Canary()
    fit(User(), canary, max_epochs=1)
    assert canary.missing == ()


@pytest.mark.parametrize("name", ["_setup_model", "_register_ddp_hooks"])
def test_the_data_parallel_strategy_has_its_private_methods(name):
    assert callable(getattr(L.pytorch.strategies.DDPStrategy, name))


def test_names_in_modules_can_be_imported():
    for dotted in (name for name in private.PRIVATE_NAMES if name.startswith("lightning.")):
        module, _, name = dotted.rpartition(".")
        assert hasattr(importlib.import_module(module), name)


def test_no_other_file_uses_a_private_name_of_lightning():
    attribute = re.compile(r"\b(?:trainer|pl_module|self\.session\.module|strategy)(?:\.\w+)*\._[a-z]\w+")
    for path in PACKAGE.rglob("*.py"):
        if path.name != "private.py":
            text = path.read_text()
            assert not attribute.findall(text), path
            assert not re.search(r"from lightning[\w.]* import .*\b_[a-z]\w*", text), path
