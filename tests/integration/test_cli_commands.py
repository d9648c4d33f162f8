"""What holds for every command: hostile names, help, few imports; and one frame of `top`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cli_world import HOSTILE_NAME, World
from trackside.cli.app import app


@pytest.mark.parametrize("command", [["ls"], ["show", "evil-1"], ["events"], ["top", "--once"], ["cancel", "evil-1"]])
def test_hostile_names_reach_no_terminal(world: World, command: list[str]) -> None:
    world.queued("evil-1", HOSTILE_NAME)

    out = world.run(*command).out

    assert not set(out) & {"\x1b", "\x07", "\u202e", "\x9b"}
    if command[0] in ("ls", "show"):
        assert "evil [red]x[/red] end" in out, "brackets are text, not markup"
        assert "owned" not in out
    (row,) = world.run("ls", "--json").json["jobs"]
    assert row["name"] == HOSTILE_NAME, "programs get what was stored"


def test_top_draws_one_frame_with_slots_waiting_jobs_and_events(world: World) -> None:
    world.running("digits-abc123")
    world.queued("later-1")

    out = world.run("top", "--once").out

    assert "1 queued  1 running  0 ended" in out
    assert "7.8s" in out, "97 steps at 12.5 steps/s"
    assert "later-1" in out
    assert "NaN" in out


def test_help_of_every_command_works_without_a_server() -> None:
    from typer.main import get_command
    from typer.testing import CliRunner

    group = get_command(app)
    names = sorted(group.commands)  # type: ignore[attr-defined]  # a group by construction
    assert {"submit", "ls", "show", "logs", "metrics", "events", "wait", "cancel", "top", "doctor"} <= set(names)
    for name in names:
        answer = CliRunner().invoke(app, [name, "--help"], env={"TRACKSIDE_BEAT_S": "nonsense"})
        assert answer.exit_code == 0, (name, answer.output)
        assert "Usage" in answer.stdout


def _imported_after(names: list[str], args: list[str]) -> list[str]:
    """Which of these modules a command has imported, in a fresh interpreter."""
    program = (
        "import sys\n"
        "from trackside.cli.app import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        f"print(*[name for name in {names} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()[-1].split()


def test_the_quick_commands_import_nothing_heavy(world: World) -> None:
    world.running("digits-abc123")
    heavy = ["rq", "torch", "streamlit", "pandas", "numpy"]
    for args in (["ls"], ["show", "digits-abc123"], ["ps"], ["metrics", "digits-abc123"]):
        assert _imported_after(heavy, ["--home", str(world.home), *args]) == []


def test_help_imports_neither_redis_nor_rich() -> None:
    assert _imported_after(["redis", "rich.console", "structlog"], ["--help"]) == []
