"""Points, front, the chosen one, and the command that shows them."""

import re

import pytest
from fake_sweep import write_point, write_sweep

from lightning_compress.report.pareto import Point, Trial, choose, front, points_of


def trial(seed=0, acc=0.9, size=100, before=0.95, **config):
    after = {"val_acc": acc, "file_bytes": size}
    return Trial({"seed": seed, "callbacks": {"a": 1}, **config}, {"val_acc": before}, after)


def test_front_is_what_no_other_point_beats():
    good, small, beaten, twin = (
        Point(name, (trial(acc=acc, size=size),))
        for name, acc, size in (("good", 0.9, 100), ("small", 0.8, 50), ("beaten", 0.85, 120), ("twin", 0.9, 100))
    )
    assert front((good, small, beaten, twin), "val_acc", "file_bytes", "max") == (small, good, twin)
    assert beaten in front((good, beaten), "val_acc", "file_bytes", "min")


def test_seeds_are_one_point_and_values_are_not():
    points = points_of([trial(0, sparsity=0.5), trial(1, sparsity=0.5), trial(0, sparsity=0.9)])
    assert [(point.label, len(point.trials)) for point in points] == [("sparsity=0.5", 2), ("sparsity=0.9", 1)]


def test_interval_is_wider_where_seeds_split_the_data_anew():
    data = {"seed": 0, "shares": [0.6, 0.2, 0.2]}
    one, other = (
        points_of([trial(s, 0.9 + s / 100, data={**data, "seed": s * again}) for s in range(3)])[0] for again in (0, 1)
    )
    plain, corrected = (point.interval("val_acc") for point in (one, other))
    assert corrected[1] - corrected[0] == pytest.approx((plain[1] - plain[0]) * (1 + 3 * 0.2 / 0.6) ** 0.5)
    assert points_of([trial()])[0].interval("val_acc") is None


def test_chosen_point_is_the_cheapest_that_validation_allows():
    points = [Point(str(size), (trial(acc=acc, size=size),)) for acc, size in ((0.948, 300), (0.946, 200), (0.9, 100))]
    assert choose(points, "val_acc", "file_bytes", "max", 0.005).label == "200"
    assert choose(points, "val_acc", "file_bytes", "max", 0.001).label == "300"
    assert choose([], "val_acc", "file_bytes", "max", 0.001) is None


def test_network_of_which_nothing_was_cut_is_a_rival():
    own, rival, given = points_of(
        [trial(), Trial({"callbacks": {}}, {}, {})], rivals=[Trial({"callbacks": {"a": 1}}, {}, {})]
    )
    assert (own.rival, rival.rival, given.rival) == (False, True, True)


def test_command_shows_table_and_writes_page_and_pictures(command, capfd):
    write_sweep(command.folder / "sweep")
    assert command("pareto", "sweep") == 0
    output = capfd.readouterr().out
    assert re.search(r"sparsity=0.8, width=0.8 +3 +0.9680 ± 0.0050 +500 +600 +chosen", output)
    assert re.search(r"width=8 +3 +0.9300 ± 0.0050 +1,500 +1,200 +rival", output)
    assert re.search(r"sparsity=0.7, width=0.7 .* 900 *\n", output)
    assert "1 of 19 jobs failed" in output
    page = (command.folder / "sweep" / "pareto.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "prefers-color-scheme: dark" in page
    assert "sparsity=0.8 seed=2" in page
    assert not re.search(r"(src|href)=[\"']?https?:|<script|url\(http", page.replace("xlink:href", "href"))
    assert (command.folder / "sweep" / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert (command.folder / "sweep" / "pareto.svg").read_text().startswith("<svg")


def test_cost_and_drop_change_what_is_chosen(command, capfd):
    write_sweep(command.folder / "sweep")
    assert command("pareto", "sweep", "--max-drop", "0.1", "--cost", "macs", "--output", "elsewhere") == 0
    output = capfd.readouterr().out
    assert re.search(r"sparsity=0.9, width=0.9 .*chosen", output)
    assert "least MACs among points that lose at most 0.1 of val_acc" in output
    assert (command.folder / "elsewhere" / "pareto.html").exists()
    assert not (command.folder / "sweep" / "pareto.html").exists()


def test_rivals_can_lie_in_a_folder_of_their_own(command, capfd):
    write_point(command.folder / "sweep", 0.5, 500, 0.972, file_bytes=None)
    write_point(command.folder / "rivals", 0.1, 300, 0.9, file_bytes=None)
    assert command("pareto", "sweep", "--rival", "rivals") == 0
    assert re.search(r"small network 1 .*rival", capfd.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["empty"], "No finished run below 'empty'"),
        (["sweep", "--metric", "test_ac"], "Did you mean 'test_acc'?"),
        (["sweep", "--cost", "mac"], "Did you mean 'macs'?"),
        (["sweep", "--cost", "latency"], "latency, ms is not known of"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(command, capfd, arguments, words):
    write_sweep(command.folder / "sweep")
    assert command("pareto", *arguments) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert words in line
