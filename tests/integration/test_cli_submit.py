"""`submit` and the exit codes: what is wrong is named, and then nothing is on the bus."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from cli_world import World, start
from trackside.bus import keys
from trackside.models import Program
from trackside.snapshots import unpack


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with programs in it, which is the working directory."""
    folder = tmp_path / "project"
    (folder / "pkg").mkdir(parents=True)
    (folder / "train.py").write_text("print('hi')\n\n\ndef main():\n    pass\n")
    (folder / "pkg" / "__init__.py").write_text("")
    (folder / "pkg" / "work.py").write_text("def main():\n    pass\n")
    monkeypatch.chdir(folder)
    return folder


def test_submit_prints_only_the_id_and_sends_the_folder_along(world: World, project: Path, tmp_path: Path) -> None:
    options = ["--name", "My Run", "--retries", "2", "--timeout", "15m"]
    result = world.run("submit", "train.py", *options, "--", "--lr", "0.1")

    job = world.store.job(result.out.strip())
    assert result.out == f"{job.id}\n"
    assert job.id.startswith("my-run-")
    assert (job.name, job.state.value) == ("My Run", "queued")
    assert job.spec.program == Program(kind="script", target="train.py", argv=("--lr", "0.1"))
    assert (job.spec.retries, job.spec.timeout_s, job.spec.device) == (2, 900.0, "any")
    assert job.spec.submitted_by is not None
    assert job.spec.snapshot is not None
    unpack(world.store.snapshot(job.spec.snapshot), tmp_path / "out", sha256=job.spec.snapshot)
    assert (tmp_path / "out" / "train.py").read_text() == (project / "train.py").read_text()


def test_a_stall_limit_of_its_own_goes_to_the_record(world: World, project: Path) -> None:
    def limit(*options: str) -> float | None:
        return world.store.job(world.run("submit", "train.py", *options).out.strip()).spec.stall_limit_s

    assert limit() is None, "the run's own pace decides"
    assert limit("--stall-limit", "45m") == 2700.0
    assert limit("--stall-limit", "none") == 0.0


def test_parameters_are_json_else_text_and_the_option_wins(world: World, project: Path) -> None:
    (project / "p.json").write_text('{"a": 1, "b": {"c": [1, 2]}}')
    params = ["--params-file", "p.json", "-p", "a=2.5", "-p", "flag=true", "-p", "word=hello", "-p", "eq=x=y"]

    job = world.run("submit", "train.py", *params, "--json").json

    assert job["spec"]["params"] == {"a": 2.5, "b": {"c": [1, 2]}, "flag": True, "word": "hello", "eq": "x=y"}


def test_modules_and_functions_are_sent_if_they_are_here(world: World, project: Path) -> None:
    module = world.run("submit", "-m", "pkg.work", "--json", "--", "x").json["spec"]
    assert module["program"] == {"kind": "module", "target": "pkg.work", "argv": ["x"]}
    assert module["snapshot"] is not None

    function = world.run("submit", "pkg.work:main", "--json").json["spec"]
    assert function["program"] == {"kind": "function", "target": "pkg.work:main", "argv": []}
    assert function["snapshot"] == module["snapshot"]

    installed = world.run("submit", "-m", "timeit", "--json")
    assert installed.json["spec"]["snapshot"] is None
    assert "must be installed" in installed.err


def test_root_sends_a_larger_folder(world: World, project: Path) -> None:
    spec = world.run("submit", "pkg/work.py", "--root", ".", "--json").json["spec"]

    assert spec["program"]["target"] == "pkg/work.py"


def test_a_home_inside_of_the_folder_is_not_sent_along(
    bus_urls: Mapping[str, str], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKSIDE_REDIS_URL", bus_urls["submitter"])
    (project / "state" / "jobs").mkdir(parents=True)
    (project / "state" / "jobs" / "journal.jsonl").write_text("{}")
    inside = World.at(project / "state", bus_urls)
    job = inside.store.job(inside.run("submit", "train.py").out.strip())

    assert job.spec.snapshot is not None
    unpack(inside.store.snapshot(job.spec.snapshot), project.parent / "out", sha256=job.spec.snapshot)
    assert sorted(each.name for each in (project.parent / "out").iterdir()) == ["pkg", "train.py"]


def test_the_same_submission_again_adds_nothing_and_another_one_is_refused(world: World, project: Path) -> None:
    for _ in range(2):
        assert world.run("submit", "train.py", "--id", "run-1").out == "run-1\n"
    assert world.store.job_ids() == ["run-1"]

    error = world.run("submit", "train.py", "--id", "run-1", "--", "--other", code=2).err
    assert "there already" in error
    assert world.store.job("run-1").spec.program.argv == ()


def test_a_submission_that_waits_ends_with_its_job(world: World, project: Path) -> None:
    again = ("submit", "train.py", "--id", "run-1", "--wait")
    world.run(*again[:-1])
    world.store.cancel("run-1")

    told = world.run(*again, code=1)
    assert told.out == "run-1\n"
    assert told.err.splitlines()[-1].startswith("run-1: cancelled")
    assert "follow it" not in told.err
    (job,) = world.run(*again, "--json", code=1).json["jobs"]
    assert job["state"] == "cancelled"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "what shall run?"),
        (["missing.py"], "no script missing.py"),
        (["notes.txt"], "is no .py script"),
        (["pkg"], "is a folder"),
        (["broken.py"], "broken.py, line 2"),
        (["pkg.work:nothing"], "defines no 'nothing'"),
        (["pkg.work:"], "package.module:function"),
        (["-m", "no-module"], "is no module name"),
        (["-m", "pkg"], "no __main__.py"),
        (["-m", "elsewhere", "--root", "."], "no module elsewhere"),
        (["train.py", "--root", "pkg"], "is not in --root"),
        (["train.py", "--root", "nowhere"], "is no folder"),
        (["train.py", "--id", "Bad Id"], "is no job id"),
        (["train.py", "--name", "a\x1b[31m"], "printable"),
        (["train.py", "--retries", "-1"], "--retries is -1"),
        (["train.py", "--timeout", "-5"], "--timeout is '-5'"),
        (["train.py", "--timeout", "0"], "at least 1ms"),
        (["train.py", "--timeout", "soon"], "--timeout is 'soon'"),
        (["train.py", "--stall-limit", "0"], "--stall-limit is '0'"),
        (["train.py", "--stall-limit", "never"], "--stall-limit is 'never'"),
        (["train.py", "--python", "/no/python"], "no program that can be run"),
        (["train.py", "--python", "train.py"], "no program that can be run"),
        (["train.py", "--param", "novalue"], "give name=value"),
        (["train.py", "--params-file", "none.json"], "cannot be read"),
        (["train.py", "--params-file", "train.py"], "is no JSON"),
        (["train.py", "--params-file", "list.json"], "a JSON object"),
        (["train.py", "--params-file", "large.json"], "TRACKSIDE_PARAMS_MAX_BYTES"),
        (["train.py", "--device", "tpu"], "--device is 'tpu': give any, cpu or gpu"),
        (["train.py", "--priority", "urgent"], "--priority is 'urgent': give high, normal or low"),
        (["train.py", "--retries", "many"], "--retries is 'many': give a whole number"),
        (["train.py", "--", "arg\udcff"], "is no UTF-8"),
        (["train.py", "--lr", "0.1"], "stand after --"),
    ],
)
def test_a_wrong_submission_is_named_and_nothing_is_enqueued(
    world: World, project: Path, args: list[str], message: str
) -> None:
    (project / "notes.txt").write_text("")
    (project / "broken.py").write_text("x = 1\ndef f(:\n")
    (project / "list.json").write_text("[1]")
    (project / "large.json").write_text('{"a": "%s"}' % ("x" * 70_000))

    result = world.run("submit", *args, code=2)

    assert message in result.err
    assert result.err.count("\n") == 1, "one line"
    assert result.out == ""
    assert world.store.job_ids() == []
    assert world.client.exists(keys.EVENTS) == 0


def test_a_folder_that_is_too_large_is_refused(world: World, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "data.bin").write_bytes(random.Random(1).randbytes(20_000))
    monkeypatch.setenv("TRACKSIDE_SNAPSHOT_MAX_BYTES", "5000")

    assert "too large to submit" in world.run("submit", "train.py", code=2).err
    assert world.store.job_ids() == []


def test_the_interpreter_is_kept_as_given_not_resolved(world: World, project: Path) -> None:
    link = project.parent / "python"
    link.symlink_to(sys.executable)

    assert world.run("submit", "train.py", "--python", "../python", "--json").json["spec"]["python"] == str(link)


def test_without_a_server_the_exit_code_is_3_and_the_way_out_is_told(fresh_home: Path, project: Path) -> None:
    for args in (["ls"], ["submit", "train.py"], ["top"], ["url"], ["info"]):
        process = start(fresh_home, *args)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 3, (args, err)
        assert out == ""
        assert "trackside up" in err
        assert "Traceback" not in err


def test_a_server_that_does_not_answer_is_exit_code_3(fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKSIDE_REDIS_URL", "redis://127.0.0.1:1/0")
    process = start(fresh_home, "ls")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 3
    assert err.count("\n") == 1


def test_a_wrong_setting_is_exit_code_2(fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKSIDE_BEAT_S", "often")
    process = start(fresh_home, "ls")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "TRACKSIDE_BEAT_S" in err


def test_the_version_is_told(fresh_home: Path) -> None:
    from trackside import __version__

    process = start(fresh_home, "--version")
    out, _ = process.communicate(timeout=30)
    assert out == f"trackside {__version__}\n"
