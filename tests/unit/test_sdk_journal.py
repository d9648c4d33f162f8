"""The journal keeps what was written, and a reader takes whole lines only."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trackside.sdk.journal import JournalReader, JournalWriter


def test_a_reader_goes_on_where_another_one_stopped(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    writer = JournalWriter(path)
    writer.metrics(1, {"loss": 0.5}, 17)
    offset, record = next(iter(JournalReader(path)))
    writer.write({"k": "note", "t": 18, "level": "info", "text": "höher"})

    assert record == {"k": "m", "s": 1, "t": 17, "m": {"loss": 0.5}}
    assert [r["text"] for _, r in JournalReader(path, offset)] == ["höher"]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_tail_waits_until_it_is_whole(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    writer = JournalWriter(path)
    writer.metrics(1, {}, 1)
    whole = path.read_bytes()
    writer.metrics(2, {}, 2)
    everything = path.read_bytes()
    path.write_bytes(everything[:-cut])
    reader = JournalReader(path)

    assert [r["s"] for _, r in reader.read()] == [1]
    assert reader.offset == len(whole)
    path.write_bytes(everything)
    assert [(end, r["s"]) for end, r in reader.read()] == [(len(everything), 2)]


def test_a_writer_closes_a_line_that_a_full_disk_tore(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"k":"m","s":1,"t":1,"m":{}}\n{"k":"m","s":2,"t')
    JournalWriter(path).metrics(3, {}, 3)
    reader = JournalReader(path)

    assert [r["s"] for _, r in reader.read()] == [1, 3]
    assert reader.damaged_lines == 1


def test_no_journal_yet_reads_as_empty(tmp_path: Path) -> None:
    assert list(JournalReader(tmp_path / "none").read()) == []


def test_a_bounded_read_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    writer = JournalWriter(path)
    for step in range(10):
        writer.metrics(step, {}, step)
    reader = JournalReader(path)

    found = [[r["s"] for _, r in reader.read(max_records=4)] for _ in range(4)]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], []]


def test_a_full_disk_never_raises_and_the_loss_is_told(tmp_path: Path) -> None:
    # A file size limit of the process stands for the full disk: the write is cut short, then refused.
    script = """
import os, resource, signal, sys
from trackside.sdk.journal import JournalReader, JournalWriter
path = sys.argv[1]
writer = JournalWriter(path)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
taken = [writer.metrics(step, {"loss": 0.5}, step) for step in range(5)]
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
writer.metrics(9, {}, 9)
print(taken, [r.get("s", r.get("text")) for _, r in JournalReader(path)])
"""
    path = str(tmp_path / "journal.jsonl")
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "[True, True, False, False, False] "
        "[0, 1, '3 journal records were lost, the disk did not take them: free space on it', 9]\n"
    )


def test_what_was_logged_survives_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    script = """
import os, signal, sys
from trackside.sdk.journal import JournalWriter
writer = JournalWriter(sys.argv[1])
for step in range(1000):
    writer.metrics(step, {"loss": 0.5}, 0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)])
    assert done.returncode == -signal.SIGKILL
    assert [r["s"] for _, r in JournalReader(path)] == list(range(1000))


def test_a_journal_beyond_its_bound_is_thinned_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    writer = JournalWriter(path, max_bytes=100)
    for step in range(1, 1001):
        writer.metrics(step, {"loss": 0.5}, 0)
        writer.metrics(step, {"accuracy": 0.5}, 0)  # logged apart, and must not always be the one that is left out
    writer.write({"k": "end", "t": 1})
    records = [r for _, r in JournalReader(path)]
    notes = [r["text"] for r in records if r["k"] == "note"]
    kept = {name: [r["s"] for r in records if r["k"] == "m" and name in r["m"]] for name in ("loss", "accuracy")}

    assert kept["loss"] == kept["accuracy"] == [1, *range(2, 1000, 101), 1000]  # the end of the series is kept too
    assert "from step 2 on the metrics of one step in 101 are kept" in notes[0]
    assert notes[1].startswith(f"{2 * (1000 - 12)} metrics records were left out")
    assert len(notes) == 2
    assert [r["k"] for r in records[-2:]] == ["note", "end"]


def test_a_thinned_journal_still_takes_what_happened_to_the_run(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    writer = JournalWriter(path, max_bytes=100)
    for step in range(1, 301):
        writer.metrics(step, {"loss": 0.5}, 0)
        writer.write({"k": "ck", "t": 0, "s": step})

    assert [r["s"] for _, r in JournalReader(path) if r["k"] == "ck"] == list(range(1, 301))


def test_series_on_steps_of_their_own_take_turns_in_a_thinned_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    writer = JournalWriter(path, max_bytes=100)
    for step in range(1, 2001):
        writer.metrics(step, {"loss": 0.5}, 0)
        writer.metrics(64 * step, {"lr": 0.5}, 0)
    names = [name for _, record in JournalReader(path) if record["k"] == "m" for name in record["m"]]
    assert min(names.count("loss"), names.count("lr")) >= 19


def test_a_script_that_closes_every_descriptor_gets_no_record_in_a_file_of_its_own(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from trackside.sdk.journal import JournalWriter\n"
        "writer = JournalWriter(sys.argv[1])\n"
        "os.closerange(3, 1024)\n"
        "file = open(sys.argv[2], 'w+')\n"
        "writer.metrics(1, {'loss': 0.5}, 0)\n"
        "print(writer.trouble)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "journal.jsonl"), str(tmp_path / "own.txt")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (answer.stdout, (tmp_path / "own.txt").read_text()) == (f"{errno.EBADF}\n", "")


def test_a_script_that_logs_everything_at_one_step_is_thinned_too(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    writer = JournalWriter(path, max_bytes=100)
    taken = sum(writer.metrics(0, {"loss": 0.5}, 0) for _ in range(20_000))

    assert 1_000 < taken < 1_300
