"""``-m``: one run for each job, the failed one does not stop the others; and the summary over them."""

from sample_report import make_report

from lightning_compress.app.summary import summary_table
from lightning_compress.report import Report


def test_sweep_runs_every_job_and_tells_of_the_failed_one(command, capfd):
    epochs = ("recipe=iterative_pruning", "stages.dense.epochs=1", "stages.prune.epochs=2", "logger=csv")
    assert command("-m", *epochs, "seed=0,1", "callbacks.weights.max_step=0.2,7", "sweep=trial") == 1
    error = capfd.readouterr().err
    assert error.count("this job failed, the others go on") == 2
    reports = [
        Report.from_json(path.read_text()) for path in (command.folder / "outputs/sweeps/trial").rglob("report.json")
    ]
    assert sorted(report.seed for report in reports) == [0, 1]


def test_sweep_is_named_after_its_command_and_summarized(command, capfd):
    epochs = ("recipe=iterative_pruning", "stages.dense.epochs=1", "stages.prune.epochs=2", "logger=csv")
    assert command("-m", *epochs, "seed=0,1") == 0
    (sweep,) = (command.folder / "outputs" / "sweeps").iterdir()
    assert "seed=0,1" in sweep.name
    capfd.readouterr()
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
