"""The command under ``kill -9``."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from lightning_compress.plan import CHECKPOINT_KEY

ARGUMENTS = ("stages.dense.epochs=6", "stages.prune.epochs=14", "logger=csv")


def start(folder):
    code = "import sys; from lightning_compress.app.main import main; sys.exit(main())"
    arguments = [sys.executable, "-c", code, *ARGUMENTS, f"hydra.run.dir={folder}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


@pytest.mark.slow
def test_killed_command_started_again_ends_with_the_same_network(tmp_path):
    whole = start(tmp_path / "whole")
    assert whole.wait() == 0, whole.stdout.read()
    chance = random.Random()
    for stage in ("dense", "prune"):
        process = start(tmp_path / "killed")
        while not (tmp_path / "killed" / stage / "last.ckpt").exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = start(tmp_path / "killed")
    assert last.wait() == 0, last.stdout.read()
    for stage in ("dense", "prune"):
        a, b = (torch.load(tmp_path / run / stage / "final.ckpt", weights_only=True) for run in ("whole", "killed"))
        assert all(torch.equal(a["state_dict"][name], b["state_dict"][name]) for name in a["state_dict"])
        assert a[CHECKPOINT_KEY]["journal"] == b[CHECKPOINT_KEY]["journal"]
    assert (tmp_path / "whole" / "report.json").read_text().split('"config"')[0] == (
        tmp_path / "killed" / "report.json"
    ).read_text().split('"config"')[0]
