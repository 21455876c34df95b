"""The ledger: many writers, a kill in mid-write, and where each job stands."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from lightning_compress.app.ledger import Ledger


def write_many(folder, writer):
    ledger = Ledger(folder)
    for number in range(40):
        ledger.write("started", job=f"{writer}-{number}", text="x" * 5000)


def test_lines_of_parallel_writers_are_whole_and_all_there(tmp_path):
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        list(pool.map(write_many, [tmp_path] * 4, range(4)))
    lines = Ledger(tmp_path).lines()
    assert {line["job"] for line in lines} == {f"{writer}-{number}" for writer in range(4) for number in range(40)}
    assert len(lines) == len(Ledger(tmp_path).path.read_text().splitlines()) == 160


def test_line_torn_by_a_kill_costs_itself_and_no_other(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.write("started", job="a")
    with ledger.path.open("ab") as file:
        file.write(b'{"status": "finished", "job": "a", "aft')
    ledger.write("started", job="b")
    assert [(job.name, job.status) for job in ledger.jobs()] == [("a", "started"), ("b", "started")]


def test_job_stands_where_its_last_line_says(tmp_path):
    ledger = Ledger(tmp_path)
    for status in ("started", "failed", "started", "finished"):
        ledger.write(status, job="a")
    ledger.write("started", job="b")
    assert [(job.name, job.status) for job in ledger.jobs()] == [("a", "finished"), ("b", "started")]


def test_session_is_what_came_since_the_command_was_started(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.write("begun", jobs=2)
    ledger.write("started", job="a")
    ledger.write("begun", jobs=3)
    ledger.write("started", job="b")
    assert [line.get("job", line.get("jobs")) for line in ledger.session()] == [3, "b"]
