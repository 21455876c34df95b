"""The Journal: append-only, in primitives, and read from files with care."""

import pytest
import torch

from lightning_compress.errors import PlanError
from lightning_compress.plan import Entry, Journal
from lightning_compress.plan.journal import KINDS

NAN = float("nan")


def journal():
    written = Journal()
    written.add("start", "begun")
    written.add(
        "cut", "took 4 neurons", epoch=2.5, step=120, neurons=4, share=0.25, layer="fc1", forced=False, loss=NAN
    )
    written.add("rollback", "took it back", epoch=3)
    return written


def test_entries_stand_in_the_order_in_which_they_were_written():
    assert [entry.kind for entry in journal()] == ["start", "cut", "rollback"]
    assert len(journal()) == 3
    assert str(list(journal())[1]) == "   epoch 2.5  cut          took 4 neurons"
    assert str(next(iter(journal()))).split() == ["start", "begun"]


def test_nothing_can_be_taken_out():
    written = journal()
    entry = next(iter(written))
    with pytest.raises(AttributeError):
        entry.text = "never happened"
    for gone in ("remove", "pop", "clear", "__delitem__", "__setitem__"):
        assert not hasattr(written, gone)
    list(written).clear()
    assert len(written) == 3


def test_writing_while_reading_is_no_trouble():
    written = journal()
    for entry in written:
        written.add("note", f"seen: {entry.text}")
    assert len(written) == 6


def test_figures_are_copies():
    state = journal().to_state()
    read = Journal.from_state(state)
    state[1][4]["neurons"] = 9
    read.to_state()[1][4]["neurons"] = 9
    assert list(read)[1].data["neurons"] == 4


def test_state_survives_a_file_that_may_hold_no_code(tmp_path):
    torch.save(journal().to_state(), tmp_path / "journal")
    read = Journal.from_state(torch.load(tmp_path / "journal", weights_only=True))
    assert repr(list(read)) == repr(list(journal()))


@pytest.mark.parametrize("value", [torch.tensor(1.0), [1], {"a": 1}, object(), b"x", 1j])
def test_only_primitives_can_be_written(value):
    written = journal()
    with pytest.raises(PlanError, match="'value' is a"):
        written.add("note", "text", value=value)
    assert len(written) == 3


def test_an_unknown_kind_is_refused():
    with pytest.raises(PlanError, match="No journal entry of kind 'cutt'"):
        journal().add("cutt", "text")
    for kind in KINDS:
        Entry(kind, "text")


def nested():
    value = []
    for _ in range(100_000):
        value = [value]
    return value


HOSTILE = {
    "nothing": None,
    "mapping": {},
    "text": "journal",
    "tensor": torch.zeros(3),
    "too many": [None] * (2**20 + 1),
    "entry as text": ["start"],
    "four fields": [["start", "x", None, None]],
    "unknown kind": [["execute", "x", None, None, {}]],
    "kind as list": [[["start"], "x", None, None, {}]],
    "endless kind": [[nested(), "x", None, None, {}]],
    "text as number": [["start", 1, None, None, {}]],
    "endless text": [["start", nested(), None, None, {}]],
    "epoch as text": [["start", "x", "1", None, {}]],
    "epoch as bool": [["start", "x", True, None, {}]],
    "epoch as NaN": [["start", "x", NAN, None, {}]],
    "epoch as tensor": [["start", "x", torch.ones(2), None, {}]],
    "step as float": [["start", "x", None, 1.5, {}]],
    "figures as list": [["start", "x", None, None, []]],
    "name of a figure as number": [["start", "x", None, None, {1: 2}]],
    "figure as list": [["start", "x", None, None, {"a": [1]}]],
    "figure as tensor": [["start", "x", None, None, {"a": torch.ones(2)}]],
    "endless figure": [["start", "x", None, None, {"a": nested()}]],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_state_is_refused_in_few_words(case):
    with pytest.raises(PlanError) as refusal:
        Journal.from_state(HOSTILE[case])
    assert len(str(refusal.value)) < 1_000


def test_figures_are_counted_over_all_entries(monkeypatch):
    """A file can name one large entry many times."""
    monkeypatch.setattr("lightning_compress.plan.journal.MAX_FIGURES", 1_000)
    entry = ["start", "x", None, None, {str(k): k for k in range(100)}]
    assert len(Journal.from_state([entry] * 10)) == 10
    with pytest.raises(PlanError, match="at most 1000 figures"):
        Journal.from_state([entry] * 11)
