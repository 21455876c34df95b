"""Loggers never stop a run; W&B runs offline and keeps its id."""

import json
import os
import subprocess
import sys
import warnings

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger

from lightning_compress.app import loggers
from lightning_compress.app.loggers import GuardedLogger


class BreakingLogger(Logger):
    """Takes a few metrics, then raises."""

    def __init__(self, good):
        super().__init__()
        self.good, self.seen, self.experiment = good, [], None

    @property
    def name(self):
        return "breaking"

    @property
    def version(self):
        return 0

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        if len(self.seen) == self.good:
            raise OSError("the disk is full")
        self.seen.append((metrics, step))


def test_logger_that_raises_is_left_out_after_one_warning():
    inner = BreakingLogger(good=1)
    logger = GuardedLogger(lambda: inner, "BreakingLogger")
    logger.log_metrics({"a": 1.0}, 0)
    with pytest.warns(UserWarning, match="BreakingLogger failed .* the disk is full"):
        logger.log_metrics({"a": 2.0}, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logger.log_metrics({"a": 3.0}, 2)
        assert logger.name is None
    assert inner.seen == [({"a": 1.0}, 0)]


def test_logger_that_cannot_be_made_is_left_out():
    logger = GuardedLogger(lambda: 1 / 0, "Impossible")
    with pytest.warns(UserWarning, match="Impossible failed"):
        logger.log_metrics({"a": 1.0})
    assert logger.failed
    logger.experiment.add_image("what a module may call on it")


def test_steps_and_epochs_count_on_from_earlier_stages():
    inner = BreakingLogger(good=9)
    logger = GuardedLogger(lambda: inner, "BreakingLogger")
    logger.begin_stage(steps=100, epochs=10)
    logger.log_metrics({"a": 1.0, "epoch": 2}, 7)
    assert inner.seen == [({"a": 1.0, "epoch": 12}, 107)]


def test_run_goes_on_when_its_logger_breaks_in_mid_fit(command, monkeypatch):
    monkeypatch.setattr(loggers, "instantiate", lambda config, **options: BreakingLogger(good=3))
    with pytest.warns(UserWarning, match="the run goes on: the disk is full"):
        assert command.small("logger=tensorboard") == 0
    assert (command.run_folder / "report.json").exists()
    assert (command.run_folder / "csv" / "version_0" / "metrics.csv").exists()


def test_tensorboard_writes_into_the_run_folder(command):
    assert command.small("logger=tensorboard") == 0
    assert list((command.run_folder / "tensorboard").glob("events.*"))


def test_online_without_a_key_warns_and_goes_on(command, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.warns(UserWarning, match="WandbLogger failed"):
        assert command.small("logger=wandb") == 0


SERVICE_DIES = """
import os, pathlib, signal, sys, time, wandb
from lightning.pytorch.loggers import WandbLogger
from lightning_compress.app.loggers import GuardedLogger

settings = wandb.Settings(silent=True, console="off", mode="offline")
logger = GuardedLogger(lambda: WandbLogger(save_dir=sys.argv[1], offline=True, settings=settings), "WandbLogger")
logger.log_metrics({"loss": 1.0}, 0)
for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    if f"--pid\\0{os.getpid()}\\0".encode() in path.read_bytes():  # what was started for this process
        os.kill(int(path.parent.name), signal.SIGKILL)
for step in range(1, 200):
    logger.log_metrics({"loss": 1.0}, step)
    time.sleep(0.02)
assert logger.failed
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the service in /proc")
def test_dead_wandb_service_is_one_warning_and_no_traceback_at_exit(tmp_path):
    call = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SERVICE_DIES, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(call, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("WandbLogger failed and is left out") == 1
    assert "Traceback" not in done.stderr


def read_offline_run(folder):
    """Every record of an offline run's file: seven bytes, then LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("run-*.wandb")
    content, position, part, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        part += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    return records


def test_wandb_run_is_offline_and_complete(command, capfd):
    assert command.small("logger=wandb_offline", "sweep=trial") == 0
    output = capfd.readouterr()
    assert output.err == ""
    assert "offline-run" in output.out
    (folder,) = (command.run_folder / "wandb").glob("offline-run-*")
    records = read_offline_run(folder)
    (run,) = {record.run.run_id: record.run for record in records if record.HasField("run")}.values()
    assert run.run_id == (command.run_folder / "wandb" / "run_id").read_text()
    assert run.run_group == "trial"
    config = {item.key for record in records if record.HasField("run") for item in record.run.config.update}
    config |= {item.key for record in records if record.HasField("config") for item in record.config.update}
    assert {"callbacks", "stages", "trainer", "seed", "environment", "plan"} <= config
    history = [record.history for record in records if record.HasField("history")]
    logged = {item.key or item.nested_key[0] for row in history for item in row.item}
    tables, pictures = {"report/layers", "report/cuts", "report/seeds"}, {"report/history", "report/values"}
    assert {"val_acc", "compress/sparsity", *tables, *pictures, "masks/network.fc1.weight"} <= logged
    epochs = [json.loads(i.value_json) for row in history for i in row.item if (i.key or i.nested_key[0]) == "epoch"]
    assert max(epochs) == 7
    artifacts = [r.request.log_artifact.artifact for r in records if r.HasField("request")]
    artifacts += [record.artifact for record in records if record.HasField("artifact")]
    models = [artifact for artifact in artifacts if artifact.type == "model"]
    assert {alias for model in models for alias in model.aliases} >= {"best", "latest"}
    assert json.loads(models[-1].metadata)["nonzero_parameters"] > 0
    written = [json.loads(path.read_text()) for path in folder.rglob("*.table.json")]
    cuts = next(table for table in written if table["columns"][1] == "what")
    assert {"cut"} <= {row[1] for row in cuts["data"]}
    assert list(folder.rglob("*.png"))


def test_wandb_id_is_kept_when_a_run_goes_on(command, monkeypatch):
    from lightning_compress.app import stages

    save, calls = stages.StageCheckpoint.on_train_epoch_end, []

    def break_off(callback, trainer, module):
        save(callback, trainer, module)
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(stages.StageCheckpoint, "on_train_epoch_end", break_off)
    assert command.small("logger=wandb_offline") == 130
    assert command.small("logger=wandb_offline") == 0
    run_id = (command.run_folder / "wandb" / "run_id").read_text()
    folders = list((command.run_folder / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert all(run_id in folder.name for folder in folders)


def test_csv_logger_is_not_doubled(command):
    command.small()
    assert [path.name for path in (command.run_folder / "csv").iterdir()] == ["version_0"]
    assert isinstance(CSVLogger("outputs"), Logger)
