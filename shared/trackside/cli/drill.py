"""`drill`: your own script under faults, in a throwaway system, judged by the oracle. Leaves nothing behind."""

from __future__ import annotations

import random
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from trackside.cli.render import say
from trackside.errors import ConfigurationError, InvalidJob

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.table import Table

    from trackside.cli.faults import Fault
    from trackside.cli.rehearse import Baseline, Result
    from trackside.cli.throwaway import Throwaway

EXIT_BROKEN: Final = 1
EXAMPLE: Final = ("digits.py", ("--steps", "320", "--step-ms", "8", "--every", "20"))
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
    seed: Annotated[int | None, typer.Option(help="Of the chance moments; default: a new one, printed.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the results here too.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave its home for looking around.")] = False,
) -> None:
    """See what faults cost your own training, and that they cost no more.

    Runs the script undisturbed, then once under each fault, in a system of its own that is removed afterwards.

    Exit code 0 if every promise held, 1 if any was broken.
    """
    script, argv, options = _program(words, job)
    chosen = _chosen(faults)
    seed = secrets.randbelow(2**31) if seed is None else seed
    from rich.console import Console

    console = Console(highlight=False)
    home = Path(tempfile.mkdtemp(prefix="trackside-drill-"))
    held = False
    try:
        report = _run(console, home, chosen, seed, lambda system: system.submit(script, *argv, options=options))
        held = all(result.held for result in report)
    finally:
        if held and not keep:
            shutil.rmtree(home, ignore_errors=True)
        else:
            console.print(f"[dim]the drill's home is kept: {home}[/dim]")
    if json is not None:
        _write_json(json, report, seed, [str(script), *argv])
    raise typer.Exit(0 if held else EXIT_BROKEN)


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
    console: Console, home: Path, chosen: list[Fault], seed: int, submit: Callable[[Throwaway], str]
) -> list[Result]:
    from trackside.cli.rehearse import baseline, rehearse
    from trackside.cli.throwaway import QUICK, throwaway

    console.print(f"Seed {seed}; {len(chosen)} faults")
    results = []
    with throwaway(home, slots="cpu:2", settings=QUICK) as system:
        with console.status("The undisturbed runs …"):
            base = baseline(system, lambda: submit(system))
        _tell_baseline(console, base)
        for fault in chosen:
            rng = random.Random(f"{seed} {fault.id}")
            with console.status(f"{fault.id} {fault.name} …"):
                result = rehearse(system, fault, lambda: submit(system), base, rng)
            results.append(result)
            console.print(f"  {fault.id:<5} {fault.name:<36} {verdict(result)}")
            for line in told(result):
                console.print(f"        {line}", style="yellow", markup=False)
    console.print(table(results))
    return results


def _tell_baseline(console: Console, base: Baseline) -> None:
    every = "no checkpoint" if base.interval is None else f"a checkpoint every {base.interval} steps"
    console.print(f"Undisturbed: {base.last_step} steps, {every}, {base.seconds:.1f} s")
    if base.last_step == 0:
        say("trackside: the script counts no steps by run.steps(), so faults strike by the clock, and redo is unknown")
    if base.differing:
        say(f"trackside: not compared, since two undisturbed runs differ: {', '.join(base.differing)}")


def verdict(result: Result) -> str:
    """One coloured word."""
    if result.error is not None:
        return "[bold red]not judged[/]"
    if result.violations:
        return f"[bold red]broken: {', '.join(sorted({v.invariant for v in result.violations}))}[/]"
    return "[green]held[/]"


def told(result: Result) -> list[str]:
    """What went wrong, a line each."""
    lines = [] if result.error is None else [result.error]
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
                _seconds(cost.noticed_s), _seconds(cost.stepping_s), str(cost.redone), str(cost.lost),
                str(cost.doubled),
            )  # fmt: skip
        found.add_row(f"{result.fault.id} {result.fault.name}", *numbers, verdict(result))
    return found


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _write_json(path: Path, results: list[Result], seed: int, command: list[str]) -> None:
    import orjson

    document = {"seed": seed, "command": command, "faults": [as_json(result) for result in results]}
    path.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")


def as_json(result: Result) -> dict[str, Any]:
    """A result as plain data."""
    cost = result.cost
    costs: dict[str, Any] = {}
    if cost is not None:
        costs = {
            "noticed_s": cost.noticed_s, "stepping_s": cost.stepping_s, "redone": cost.redone, "lost": cost.lost,
            "doubled": cost.doubled,
        }  # fmt: skip
    return {
        "fault": result.fault.id, "name": result.fault.name, "job": result.job, "attempts": result.attempts,
        "reasons": list(result.reasons), **costs, "held": result.held, "error": result.error,
        "violations": [str(violation) for violation in result.violations], "seconds": result.seconds,
    }  # fmt: skip
