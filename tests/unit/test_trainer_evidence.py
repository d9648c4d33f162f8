"""What an ending is judged by: bounded, and not taken from somebody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from trackside_trainer import evidence
from trackside_trainer.evidence import MAX_CHARS, MemoryKills, bounded, crash_dump, last_lines, was_large


def test_the_last_twenty_lines_are_kept_each_bounded(tmp_path: Path) -> None:
    output = tmp_path / "output.log"
    assert last_lines(output) is None
    output.write_text("".join(f"line {at}\n\n" for at in range(50)) + "x" * 10_000 + "\n")
    text = last_lines(output) or ""
    assert text.splitlines()[:2] == ["last output:", "line 31"]
    assert len(text.splitlines()) == 21
    assert len(text) < 600


def test_a_bar_that_draws_itself_anew_is_one_line_as_it_stood_last(tmp_path: Path) -> None:
    output = tmp_path / "output.log"
    bar = "".join(f"\rEpoch 1: {part:3d}%" for part in range(60))
    output.write_bytes(f"WARNING: data shard 7 is missing\r\n \r\n50%\r   \n{bar}\r".encode())
    assert last_lines(output) == "last output:\nWARNING: data shard 7 is missing\nEpoch 1:  59%"


def test_a_crash_dump_is_found_without_its_list_of_modules(tmp_path: Path) -> None:
    output = tmp_path / "output.log"
    output.write_text(
        "step 1\nFatal Python error: Segmentation fault\n\nThread 0x1 (most recent call first):\n  File x\n\n"
        "Extension modules: numpy, torch (total: 2)\n"
    )
    assert crash_dump(output) == (
        "Fatal Python error: Segmentation fault\n\nThread 0x1 (most recent call first):\n  File x"
    )
    assert last_lines(output, before_crash=True) == "last output:\nstep 1"
    output.write_text("step 1\n")
    assert crash_dump(output) is None


def test_a_dump_ends_with_the_programs_own_frames_in_each_thread(tmp_path: Path) -> None:
    ours = '  File "/x/trackside/sdk/program.py", line 3 in _run_as_main\n  File "/x/launch.py", line 1 in start\n'
    loader = (
        'Thread 0x2 (most recent call first):\n  File "/x/queue.py", line 1 in get\n  File "t.py", line 2 in load\n\n'
    )
    main = 'Thread 0x1 (most recent call first):\n  File "/x/trackside/sdk/run.py", line 9\n  File "t.py", line 5\n'
    dump = f"{loader}{main}{ours}"
    assert evidence.program_frames(dump) == dump.replace(ours, "  ...\n")
    output = tmp_path / "output.log"
    output.write_text(f"Fatal Python error: Segmentation fault\n\n{dump}\nExtension modules: numpy (total: 1)\n")
    assert "launch.py" not in (crash_dump(output) or "launch.py")


def test_evidence_is_bounded_in_bytes_and_the_first_counts_most() -> None:
    kept = bounded([None, "", "a" * 3000, "ä" * 4000, "last"])
    assert kept[0] == "a" * 3000
    assert kept[1].endswith("ä\n...")
    assert len(kept) == 2
    assert sum(len(text.encode()) for text in kept) <= MAX_CHARS


@pytest.mark.parametrize(
    ("now", "before", "kills"),
    [
        (MemoryKills(count=3, where="a"), MemoryKills(count=1, where="a"), 2),
        (MemoryKills(count=3, where="a"), MemoryKills(count=1, where="b"), 0),
        (MemoryKills(count=None, where=""), MemoryKills(count=1, where="a"), 0),
        (MemoryKills(count=1, where="a"), MemoryKills(count=3, where="a"), 0),
    ],
)
def test_memory_kills_are_compared_only_with_their_like(now: MemoryKills, before: MemoryKills, kills: int) -> None:
    assert now.since(before) == kills


def test_the_nearest_cgroup_is_asked_before_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("0::/jobs/one\n")
    (proc / "vmstat").write_text("oom_kill 70\n")
    monkeypatch.setattr(evidence, "_PROC", proc)
    monkeypatch.setattr(evidence, "_CGROUPS", groups)
    monkeypatch.setattr(evidence, "_COUNTERS", ((proc / "vmstat", "the host"),))
    assert MemoryKills.now() == MemoryKills(count=70, where="the host")

    (groups / "jobs" / "one").mkdir(parents=True)
    (groups / "jobs" / "one" / "memory.events").write_text("low 0\noom_kill 2\n")
    (groups / "memory.events").write_text("oom_kill 9\n")
    (groups / "jobs" / "memory.max").write_text(f"{64 * 2**20}\n")
    assert MemoryKills.now() == MemoryKills(count=2, where="this cgroup")
    assert evidence.memory_limit_mib() == 64.0

    before = MemoryKills.now()
    assert evidence.killed_for_memory(before, 60.0) is None
    (groups / "jobs" / "one" / "memory.events").write_text("oom_kill 3\n")
    assert evidence.killed_for_memory(before, 60.0) == (
        "the kernel killed 1 process of this cgroup for memory meanwhile; this one had used up to 60 MiB of 64 MiB"
    )
    assert evidence.killed_for_memory(before, 6.0) is None  # it was somebody else
    assert (evidence.killed_for_memory(before, 6.0, loader=True) or "").startswith("the kernel killed 1 process of")
    (groups / "jobs" / "one" / "memory.events").write_text("oom_kill 2\n")
    assert evidence.killed_for_memory(before, 6.0, loader=True) is None  # by whoever else


def test_a_small_process_is_not_what_the_kernel_looked_for() -> None:
    assert was_large(60.0, 64.0)
    assert not was_large(6.0, 64.0)
    assert not was_large(None, 64.0)
    assert not was_large(6.0, None)
