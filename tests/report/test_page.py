"""The page, its figures and the tables: whole, self-contained, safe."""

from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from xml.etree import ElementTree

import matplotlib
import pytest
from rich.console import Console
from sample_report import make_report

from lightning_compress.errors import CompressionError
from lightning_compress.report import (
    Layer,
    draw_fidelity,
    draw_history,
    draw_layers,
    layer_table,
    network_table,
    read_history,
    render_page,
    to_png,
    to_svg,
)


class Reader(HTMLParser):
    VOID = frozenset({"meta", "br", "use", "path", "rect"})

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.addresses, self.scripts = [], [], [], 0

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
        self.scripts += tag == "script"

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def read(page):
    reader = Reader()
    reader.feed(page)
    return reader


def test_page_is_whole_and_needs_nothing_from_outside():
    reader = read(render_page(make_report()))
    assert reader.open == []
    assert reader.scripts == 0
    assert all(address.startswith("#") for address in reader.addresses)
    assert len(reader.ids) == len(set(reader.ids))


def test_page_tells_what_was_asked_and_each_rollback():
    page = render_page(make_report())
    for words in ("asked for 80% sparsity, reached 50%", "back from 80% to 50%", "50% is the ceiling", "1.8x fewer"):
        assert words in page


def test_everything_from_outside_is_escaped():
    evil = "<script>alert(1)</script>&"
    report = replace(make_report(recipe=evil), command=evil, plan=(evil,), config={"a": evil}, environment={evil: evil})
    network = replace(report.networks[0], layers=(Layer(evil, (1, 1), 1, 1),), stage=evil)
    report = replace(report, networks=(network, report.networks[1]), journal=({**report.journal[0], "text": evil},))
    page = render_page(report)
    assert read(page).scripts == 0
    assert "<script" not in page


def test_figures_mark_rollbacks_and_name_values():
    history = read_history(make_report())
    svg = to_svg(draw_history(history, "val_acc"), "history")
    ElementTree.fromstring(svg)
    assert "rolled back" in svg
    assert "50.0 %" in svg
    assert "currentColor" in svg


def taught_report():
    figures = {"agreement": 0.9, "kl_to_teacher": 0.2, "student_nll": 0.3, "teacher_nll": 0.1,
               "student_ece": 0.04, "teacher_ece": 0.02, "agreement_second": 0.8}  # fmt: skip
    report = make_report()
    journal = [dict(entry) for entry in report.journal]
    for entry in journal:
        if entry["kind"] == "measurement":
            entry["data"] = {**entry["data"], **{f"compress/{name}": value for name, value in figures.items()}}
    worth = {"without": "<b>first</b>", "accuracy": 0.91, "nll": 0.456}
    journal.insert(1, {"kind": "note", "text": "teachers", "epoch": 0.0, "step": 0, "data": worth})
    return replace(report, journal=tuple(journal))


def test_a_run_with_teachers_shows_how_faithful_the_student_was_and_what_each_teacher_is_worth():
    history = read_history(taught_report())
    assert [time for time, _ in history.fidelity["agreement"]] == [1.0, 2.0, 3.0, 5.0]
    svg = to_svg(draw_fidelity(history), "fidelity")
    ElementTree.fromstring(svg)
    for words in ("0.9", "0.8 second", "0.3 student", "0.1 teacher", "0.04 student", "0.02 teacher"):
        assert words in svg
    page = render_page(taught_report())
    assert read(page).open == []
    assert "&lt;b&gt;first" in page
    assert "0.4560" in page


def test_a_run_without_teachers_has_no_such_section():
    assert "Student and teachers" not in render_page(make_report())
    with pytest.raises(CompressionError, match="No validation of this run compared"):
        draw_fidelity(read_history(make_report()))


def test_figures_are_the_same_each_time_and_leave_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    drawings = {to_svg(draw_layers(make_report()), "layers") for _ in range(2)}
    assert len(drawings) == 1
    assert to_png(draw_layers(make_report())).startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before


def test_run_without_compression_has_a_page_too():
    report = make_report()
    read(render_page(replace(report, networks=report.networks[:1], journal=report.journal[:3])))


def shown(table, width=100):
    console = Console(file=StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_tables_show_before_and_after():
    report = make_report()
    assert "50.0%" in shown(layer_table(report))
    text = shown(network_table(report))
    assert "1.8x fewer" in text
    assert "-0.0050" in text


@pytest.mark.parametrize(("after", "words"), [((), "gone"), ((Layer("fc", (5, 10), 50, 50),), "(5x10)")])
def test_layer_that_shrank_or_went_is_told(after, words):
    report = make_report()
    report = replace(report, networks=(report.networks[0], replace(report.networks[1], layers=after)))
    assert words in shown(layer_table(report))
