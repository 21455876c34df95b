"""A search: its space, its hopeless trials, and that it goes on where it was."""

from concurrent.futures import Future

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from lightning_compress.app import search as searching
from lightning_compress.app.hopeless import HopelessError, StopHopeless
from lightning_compress.app.ledger import Ledger
from lightning_compress.app.search_space import overrides_of, read_space
from lightning_compress.errors import CompressionError
from lightning_compress.plan import Record

optuna = pytest.importorskip("optuna")
SMALL = (
    "stages.dense.epochs=2",
    "stages.neurons.epochs=1",
    "stages.prune.epochs=1",
    "stages.cluster.epochs=1",
    "module=lenet_300_100",
    "callbacks.neurons.recover=null",
    "callbacks.weights.recover=null",
    "callbacks.clusters.importance=null",
    "callbacks.hopeless.max_drop=1",
    "search.workers=1",
    "search.finalists=0",
)


class InThisProcess:
    """The pool's face; jobs are done when they are handed in."""

    def __init__(self, *_, **__):
        self._processes = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def shutdown(self, **_):
        pass

    def submit(self, job, *arguments):
        future = Future()
        try:
            future.set_result(job(*arguments))
        except CompressionError as error:
            future.set_exception(error)
        return future


@pytest.fixture
def small(command, monkeypatch):
    """A search of seconds, in this process."""
    monkeypatch.setattr(searching, "ProcessPoolExecutor", InThisProcess)
    return lambda *arguments: command("search", *SMALL, "hydra.run.dir=found", *arguments)


@pytest.mark.slow
def test_search_leaves_a_front_and_goes_on_where_it_was(small, command, capfd):
    assert small("search.trials=1") == 0
    assert (command.folder / "found" / "pareto.html").exists()
    first = {job.name: job.line for job in Ledger(command.folder / "found").jobs()}
    assert small("search.trials=2") == 0
    jobs = Ledger(command.folder / "found").jobs()
    assert [job.status for job in jobs] == ["finished"] * 2
    assert first == {job.name: job.line for job in jobs[:1]}
    assert jobs[0].line["overrides"][:2] == ["callbacks.neurons.amount=0.82", "callbacks.weights.sparsity=0.55"]
    output = capfd.readouterr().out
    assert "teachers" not in output
    assert "trial   0  val_acc" in output
    assert "chosen" in output
    shared = (command.folder / "found" / "shared" / "dense" / "final.ckpt").read_bytes()
    for job in jobs:
        assert (command.folder / "found" / job.name / "dense" / "final.ckpt").read_bytes() == shared
        assert job.line["file"]["bytes"] > 0


def test_broken_trial_is_taken_up_again_in_its_folder(small, command, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(searching, "run_whole", die)
        assert small("search.trials=1", "search.share=false") == 130
    (broken,) = Ledger(command.folder / "found").jobs()
    assert broken.status == "started"
    monkeypatch.setattr(searching, "run_whole", lambda *_: entry())
    assert small("search.trials=1", "search.share=false") == 0
    (job,) = Ledger(command.folder / "found").jobs()
    assert (job.name, job.status) == (broken.name, "finished")


def entry(val_acc=0.9, size=7):
    figures = {"val_acc": val_acc, "test_acc": 0.9, "macs": 5, "dense_bytes": 9}
    file = {"name": "model.lcz", "bytes": size}
    config = {"seed": 0, "callbacks": {"a": 1}}
    return {"monitor": "val_acc", "mode": "max", "before": figures, "after": figures, "file": file, "config": config}


def test_hopeless_trial_is_recorded_and_the_search_goes_on(small, command, monkeypatch):
    answers = iter([HopelessError("val_acc 0.1"), entry()])

    def run(*_):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(searching, "run_whole", run)
    assert small("search.trials=2", "search.share=false") == 0
    assert [job.status for job in Ledger(command.folder / "found").jobs()] == ["failed", "finished"]


def test_finalists_and_the_recipes_own_values_are_run_once_at_full_length(small, command, monkeypatch):
    calls = []

    def run(overrides, folder, trial):
        calls.append(overrides)
        return entry(val_acc=0.9 + len(calls) / 100, size=100 + len(calls))  # each as good as the others

    monkeypatch.setattr(searching, "run_whole", run)
    options = ("search.finalists=2", "search.share=false")
    assert small("search.trials=3", *options) == 0
    finals = calls[3:]
    assert all("stages.prune.epochs=60" in overrides for overrides in finals)
    assert [one[:-3] for one in finals] == [calls[0], calls[2], calls[1]]
    assert small("search.trials=3", *options) == 0
    assert len(calls) == 6
    assert [job.name.split("/")[0] for job in Ledger(command.folder / "found").jobs()] == ["trials"] * 3 + [
        "finalists"
    ] * 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["recipe=iterative_pruning"], "such as recipe=search"),
        (["search.objectives=[test_acc,file_bytes]"], "first the monitored 'val_acc'"),
        (["search.objectives=[val_acc,byte]"], "byte"),
        (["file=null"], "the recipe writes no file"),
        (["+search.space.nothing={low: 1, high: 2}"], "names 'nothing'"),
        (["+search.space.seed={low: 3, high: 2}"], "search.space of 'seed'"),
    ],
)
def test_wrong_search_is_refused_in_one_line(command, capfd, arguments, words):
    assert command("search", *arguments) == 1
    assert words in capfd.readouterr().err.splitlines()[-1]


def test_space_has_whole_numbers_logarithms_and_choices():
    space = read_space({"a": {"low": 1, "high": 3}, "b": {"low": 0.1, "high": 1.0, "log": True}, "c": ["x", "y"]})
    assert [type(one).__name__.removesuffix("Distribution") for one in space.values()] == [
        "Int",
        "Float",
        "Categorical",
    ]
    assert space["b"].log
    assert overrides_of({"a": 2, "b": 0.123456, "c": "x"}) == ["a=2", "b=0.123", "c=x"]


class Watched:
    """As much of a Trainer as the callback looks at."""

    def __init__(self):
        self.state = type("State", (), {"fn": TrainerFn.FITTING})
        self.callback_metrics = {}


def watch(callback, values, *, reference=0.95):
    """Show ``callback`` these validations of a second stage."""
    trainer, module = Watched(), torch.nn.Linear(1, 1)
    journal = Record.of(module).journal
    journal.add("start", "dense")
    journal.add("measurement", "validation", val_acc=reference)
    journal.add("start", "prune")
    for value in values:
        trainer.callback_metrics = {"val_acc": torch.tensor(value)}
        callback.on_validation_end(trainer, module)


def test_trial_is_hopeless_when_it_stays_far_below_where_it_began():
    watch(StopHopeless(max_drop=0.1, patience=3), [0.1, 0.1, 0.9, 0.1, 0.1])
    with pytest.raises(HopelessError, match="where it was 0.95"):
        watch(StopHopeless(max_drop=0.1, patience=3), [0.9, 0.1, 0.1, 0.1])


def test_optuna_prunes_a_trial_of_one_objective(monkeypatch):
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.ThresholdPruner(lower=0.5))
    monkeypatch.setattr(StopHopeless, "trial", study.ask())
    with pytest.raises(HopelessError, match="Optuna's pruner"):
        watch(StopHopeless(max_drop=1, patience=9), [0.9, 0.4])
