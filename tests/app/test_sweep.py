"""``-m``: one run for each job, the failed one does not stop the others; the ledger; and the summary over the seeds."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from sample_report import make_report

from lightning_compress.app.ledger import Ledger
from lightning_compress.app.summary import summary_table

SMALL = (
    "recipe=iterative_pruning", "stages.dense.epochs=1", "stages.prune.epochs=2", "logger=csv",
    "report.sensitivity=false",
)  # fmt: skip


def ledger_of(folder, name):
    return Ledger(folder / "outputs" / "sweeps" / name)


def counts(ledger):
    """How often each job was started and how often it ended."""
    return Counter((line["status"], line["job"]) for line in ledger.lines() if "job" in line)


def test_sweep_runs_every_job_records_the_failed_one_and_skips_the_finished(command, capfd):
    jobs = ("-m", *SMALL, "seed=0,1", "callbacks.weights.max_step=0.2,7", "sweep=trial")
    assert command(*jobs) == 1
    error = capfd.readouterr().err
    assert error.count("this job failed, the others go on") == 2
    assert "4 jobs: 2 finished, 2 failed; the same command does the rest" in error
    ledger = ledger_of(command.folder, "trial")
    finished = [job.line for job in ledger.jobs() if job.status == "finished"]
    assert sorted(line["seed"] for line in finished) == [0, 1]
    failed = [job.line for job in ledger.jobs() if job.status == "failed"]
    assert all("max_step=7" in line["error"] for line in failed)
    for line in finished:
        report = json.loads((ledger.path.parent / line["job"] / "report.json").read_text())
        assert line["after"]["test_acc"] == report["networks"][-1]["metrics"]["test_acc"]
        assert line["after"]["macs"] == report["networks"][-1]["cost"]["macs"]
        assert line["config"] == report["config"]
        assert line["environment"]["torch"]

    assert command(*jobs) == 1
    assert capfd.readouterr().out.count("was finished before") == 2
    for line in finished:
        assert counts(ledger)["started", line["job"]] == 1
    for line in failed:
        assert counts(ledger)["failed", line["job"]] == 2


@pytest.mark.slow
def test_submitit_launcher_is_the_only_change(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    launcher = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10")
    assert (
        start(tmp_path, "-m", *SMALL, "seed=0", "callbacks.weights.max_step=0.2,7", "sweep=trial", *launcher).wait()
        == 1
    )
    assert Counter(job.status for job in ledger_of(tmp_path, "trial").jobs()) == {"finished": 1, "failed": 1}


def test_sweep_is_named_after_its_command_and_summarized(command, capfd):
    assert command("-m", *SMALL, "seed=0,1") == 0
    (sweep,) = (command.folder / "outputs" / "sweeps").iterdir()
    assert "seed=0,1" in sweep.name
    output = capfd.readouterr()
    assert "2 jobs: 2 finished\n" in output.err
    assert re.search(r"finished; 1 of 2 jobs, about \d+:\d\d left", output.out)
    assert command("summarize", str(sweep)) == 0
    table = capfd.readouterr().out
    assert "| test_acc |" in table
    assert "2 runs of `iterative_pruning`, seeds 0, 1" in table


def test_summary_of_one_run_is_refused(command, capfd):
    assert command("summarize", str(command.folder)) == 1
    assert "0 finished runs" in capfd.readouterr().err


def test_summary_gives_the_paired_difference():
    reports = [
        make_report(seed=seed, before={"test_acc": 0.97 + d}, after={"test_acc": 0.96 + d})
        for seed, d in enumerate((0.0, 0.01, 0.02))
    ]
    (row,) = [line for line in summary_table(reports).splitlines() if line.startswith("| test_acc")]
    assert "-0.0100 ± 0.0000" in row
    assert "0.9800 ± 0.0248" in row
    assert row.endswith("| 0.0100 |")


def start(folder, *arguments):
    code = "import sys; from lightning_compress.app.main import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=folder, env=environment)


@pytest.mark.slow
def test_parallel_sweep_killed_in_the_middle_runs_no_job_twice(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    steps = "0.1,0.15,0.2,0.25,0.3,7"  # a step cannot be 7
    jobs = ("-m", *SMALL, "seed=0,1", f"callbacks.weights.max_step={steps}", "sweep=trial", "hydra/launcher=joblib")
    ledger = ledger_of(tmp_path, "trial")
    first = start(tmp_path, *jobs, "hydra.launcher.n_jobs=2")
    while sum(job.status == "finished" for job in ledger.jobs()) < 3:
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert start(tmp_path, *jobs, "hydra.launcher.n_jobs=2").wait() == 1
    status = Counter(job.status for job in ledger.jobs())
    assert status == {"finished": 10, "failed": 2}
    found = counts(ledger)
    assert all(number == 1 for (state, _), number in found.items() if state == "finished")
    again = start(tmp_path, *jobs, "hydra.launcher.n_jobs=2")
    assert again.wait() == 1
    assert {key: n for key, n in counts(ledger).items() if key[0] == "finished"} == {
        key: n for key, n in found.items() if key[0] == "finished"
    }
