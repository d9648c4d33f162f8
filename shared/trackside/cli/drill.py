"""`drill`: your own script under faults, in a throwaway system, judged by the oracle. Leaves nothing behind."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from trackside.cli import parse, render
from trackside.cli.exits import FAILED
from trackside.cli.options import count
from trackside.cli.render import say
from trackside.cli.services import Slots
from trackside.errors import ConfigurationError, InvalidJob, TracksideError
from trackside.slotgrammar import parse_slots
from trackside.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.table import Table

    from trackside.cli.faults import Fault
    from trackside.cli.rehearse import Baseline, Result
    from trackside.cli.stops import Stops
    from trackside.cli.throwaway import Throwaway

EXAMPLE: Final = ("digits.py", ("--steps", "240", "--step-ms", "8", "--every", "20"))
COLUMNS: Final = ("fault", "noticed", "stepping again", "redone", "lost", "doubled", "verdict")


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command()(drill)


def drill(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SCRIPT [-- ARGS...]", show_default=False, help="Your script; default: an example on real data."
        ),
    ] = None,
    job: Annotated[
        Path | None, typer.Option("--job", metavar="SPEC", help="JSON instead: {script, args, options of submit}.")
    ] = None,
    faults: Annotated[str, typer.Option(metavar="quick|all|F01,F02", help="Which faults.")] = "quick",
    slots: Slots = "auto",
    seed: Annotated[
        int | None,
        count("--seed", "Of the chance moments; default: a new one, printed."),
    ] = None,
    limit: Annotated[
        str, typer.Option(metavar="TIME", help="For the undisturbed runs, as 90s or 10m.", show_default=True)
    ] = "5m",
    json: Annotated[Path | None, typer.Option("--json", help="Write the results here too.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave its home for looking around.")] = False,
) -> None:
    """See what faults cost your own training, and that they cost no more.

    Runs the script undisturbed, then once under each fault, in a system of its own that is removed afterwards.

    Exit code 0 if every promise held, 1 if any was broken.
    """
    from trackside.cli.stops import taken

    script, argv, options = _program(words, job)
    parse_slots(slots)
    _check_report(json)
    plan = _Plan(
        faults=_chosen(faults),
        seed=secrets.randbelow(2**31) if seed is None else seed,
        slots=slots,
        limit_s=parse.duration_s(limit, "--limit"),
    )
    console = render.console(markup=True)
    report = Report(seed=plan.seed, command=[str(script), *argv])
    began_s = time.monotonic()
    with taken() as stops:
        home = Path(tempfile.mkdtemp(prefix="trackside-drill-"))
        try:
            _run(console, home, plan, lambda system: system.submit(script, *argv, options=options), report, stops)
            report.over = True
        except (TracksideError, KeyboardInterrupt, SystemExit) as error:
            report.error = error.message if isinstance(error, TracksideError) else "interrupted"
            raise
        finally:
            report.seconds = round(time.monotonic() - began_s, 1)
            try:
                if json is not None:
                    _write_json(json, report)
            finally:
                if report.held and not keep:
                    shutil.rmtree(home, ignore_errors=True)
                else:
                    console.print(f"[dim]the drill's home is kept: {home}[/dim]")
    console.print(f"Took {report.seconds:.0f} s")
    raise typer.Exit(0 if report.held else FAILED)


def _check_report(path: Path | None) -> None:
    """Raise ConfigurationError where no report can be written: after the drill it would be lost."""
    if path is None:
        return
    if not path.absolute().parent.is_dir():
        raise ConfigurationError(f"--json {path}: there is no such folder; make it first")
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ConfigurationError(f"--json {path} cannot be written: give a file of yours")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """What is asked for."""

    faults: list[Fault]
    seed: int
    slots: str
    limit_s: float


@dataclass(kw_only=True, slots=True)
class Report:
    """What came of it, so far."""

    seed: int
    command: list[str]
    results: list[Result] = field(default_factory=list)
    base: Baseline | None = None
    seconds: float = 0.0
    error: str | None = None  # why it could not go on
    over: bool = False

    @property
    def held(self) -> bool:
        """Whether every fault was done, and nothing speaks against any."""
        return self.over and all(result.held for result in self.results)


def _program(words: list[str] | None, job: Path | None) -> tuple[Path, tuple[str, ...], tuple[str, ...]]:
    """The script, its arguments, and options for `submit`."""
    if job is not None:
        import orjson

        try:
            spec = orjson.loads(job.read_bytes())
            script, argv, options = spec["script"], spec.get("args", []), spec.get("options", [])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidJob(f"{job} is no job: {error}; give {{'script': ..., 'args': [...]}} as JSON") from error
        path = (job.parent / script).resolve()
        return _there(path), tuple(map(str, argv)), tuple(map(str, options))
    if words:
        return _there(Path(words[0])), tuple(words[1:]), ()
    from trackside.cli.demo import examples_dir

    name, argv = EXAMPLE
    return examples_dir() / name, argv, ()


def _there(path: Path) -> Path:
    if not path.is_file():
        raise InvalidJob(f"there is no script {str(path)!r}: give the path of a .py file")
    return path


def _chosen(text: str) -> list[Fault]:
    from trackside.cli.faults import FAULTS

    if text in ("quick", "all"):
        return [fault for fault in FAULTS if fault.quick or text == "all"]
    known = {fault.id: fault for fault in FAULTS}
    ids = [word.strip() for word in text.split(",") if word.strip()]
    strange = [word for word in ids if word not in known]
    if strange or not ids:
        raise ConfigurationError(f"no fault {', '.join(strange) or text!r}: quick, all, or of {', '.join(known)}")
    return [known[word] for word in ids]


def _run(
    console: Console, home: Path, plan: _Plan, submit: Callable[[Throwaway], str], report: Report, stops: Stops
) -> None:
    from trackside.cli.rehearse import baseline, rehearse
    from trackside.cli.throwaway import QUICK, throwaway

    with throwaway(home, slots=plan.slots, settings=QUICK, stops=stops) as system:
        slots = ", ".join(sorted(slot.id for slot in system.store.slots()))
        console.print(f"Seed {plan.seed}; {counted(len(plan.faults), 'fault')}; slots: {slots}")
        with console.status("The undisturbed runs …"):
            report.base = base = baseline(system, lambda: submit(system), plan.limit_s)
        _tell_baseline(console, base)
        for fault in plan.faults:
            rng = random.Random(f"{plan.seed} {fault.id}")
            with console.status(f"{fault.id} {fault.name} …"):
                result = rehearse(system, fault, lambda: system.again(base.job), base, rng)
            report.results.append(result)
            console.print(f"  {fault.id:<5} {fault.name:<38} {verdict(result)}")
            for line in told(result):
                console.print(f"        {line}", style="dim" if result.not_applicable else "yellow", markup=False)
    console.print(table(report.results))
    if blank := not_judged(report.results):
        say(f"trackside: nothing was seen by which these promises could be judged: {'; '.join(blank)}")


def not_judged(results: list[Result]) -> tuple[str, ...]:
    """The oracle's rules that had nothing to judge in any of these faults."""
    from trackside import oracle

    return oracle.not_judged({name for result in results for name in result.judged})


def _tell_baseline(console: Console, base: Baseline) -> None:
    every = "no checkpoint" if base.interval is None else f"a checkpoint every {counted(base.interval, 'step')}"
    hang = f"; no step for {base.hang_s:.1f} s is a hang" if base.last_step else ""
    console.print(f"Undisturbed: {counted(base.last_step, 'step')}, {every}, {base.seconds:.1f} s{hang}")
    if base.last_step == 0:
        say("trackside: the script counts no steps by run.steps(), so faults strike by the clock, and redo is unknown")
    if base.differing:
        say(f"trackside: not compared, since two undisturbed runs differ: {', '.join(base.differing)}")


def verdict(result: Result) -> str:
    """One coloured word."""
    if result.error is not None:
        return "[bold red]not judged[/]"
    if result.not_applicable is not None:
        return "[dim]n/a[/]"
    if result.violations:
        return f"[bold red]broken: {', '.join(sorted({v.invariant for v in result.violations}))}[/]"
    return "[green]held[/]"


def told(result: Result) -> list[str]:
    """What went wrong, or why nothing was done, a line each."""
    lines = [line for line in (result.error, result.not_applicable) if line is not None]
    return lines + [str(violation) for violation in result.violations]


def table(results: list[Result]) -> Table:
    """Fault, noticed, stepping again, redone, lost, doubled, verdict."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    found = Table(title="What each fault cost", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in COLUMNS:
        found.add_column(column, justify="left" if column in ("fault", "verdict") else "right")
    for result in results:
        cost = result.cost
        numbers = ("-",) * 5
        if cost is not None:
            numbers = (
                _seconds(cost.noticed_s), _seconds(cost.stepping_s), str(cost.redone) if result.counted else "-",
                str(cost.lost) if result.counted else "-", str(cost.doubled),
            )  # fmt: skip
        found.add_row(f"{result.fault.id} {result.fault.name}", *numbers, verdict(result))
    return found


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _write_json(path: Path, report: Report) -> None:
    import orjson

    base = report.base
    undisturbed = None
    if base is not None:
        undisturbed = {
            "steps": base.last_step, "interval": base.interval, "seconds": round(base.seconds, 2),
            "hang_s": round(base.hang_s, 2), "differing": list(base.differing),
        }  # fmt: skip
    document = {
        "seed": report.seed, "command": report.command, "held": report.held, "error": report.error,
        "seconds": report.seconds, "undisturbed": undisturbed,
        "faults": [as_json(result) for result in report.results],
    }  # fmt: skip
    path.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")


def as_json(result: Result) -> dict[str, Any]:
    """A result as plain data."""
    cost = result.cost
    costs: dict[str, Any] = {}
    if cost is not None:
        costs = {
            "noticed_s": cost.noticed_s, "stepping_s": cost.stepping_s, "doubled": cost.doubled,
            "redone": cost.redone if result.counted else None, "lost": cost.lost if result.counted else None,
        }  # fmt: skip
    return {
        "fault": result.fault.id, "name": result.fault.name, "job": result.job, "attempts": result.attempts,
        "reasons": list(result.reasons), **costs, "held": result.held, "error": result.error,
        "not_applicable": result.not_applicable,
        "violations": [str(violation) for violation in result.violations], "judged": list(result.judged),
        "seconds": result.seconds,
    }  # fmt: skip
