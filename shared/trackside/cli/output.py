"""`logs`, `metrics`, `events`: what a job wrote and what became of it, as it stands or as it goes on."""

from __future__ import annotations

import codecs
import io
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from trackside.cli.context import find_job, store_of
from trackside.cli.options import OneJob, count
from trackside.cli.render import block, plain, print_json, print_json_line, record, say, when
from trackside.errors import BusUnavailable, NotFound
from trackside.wording import counted

if TYPE_CHECKING:
    from trackside.models import Event
    from trackside.store import Store

_BLOCK_S: Final = 0.5
_DIGEST: Final = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_OUTAGE_LIMIT_S: Final = 60.0
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on as more comes, until the job has ended.")]


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.command()(logs)
    app.command()(events)


def logs(
    ctx: typer.Context,
    job: OneJob,
    follow: Follow = False,
    attempt: Annotated[int | None, count("--attempt", "Only this attempt's.", least=1)] = None,
    tail: Annotated[int | None, count("--tail", "Begin with the last N lines.", least=0)] = None,
) -> None:
    """Print what a job wrote to stdout and stderr.

    All attempts one after another. Bytes go to a pipe as they were written; on a terminal escape
    sequences are taken out.
    """
    store = store_of(ctx)
    found = find_job(store, job)
    if attempt is not None and attempt > found.attempt and not follow:
        raise NotFound(
            f"job {found.id!r} has {counted(found.attempt, 'attempt')}: there is no attempt {attempt}; "
            f"`trackside show {found.id}` lists them"
        )
    sink = _Sink()
    cursor = "-" if attempt is None else f"{attempt}-0"
    if tail is not None:
        pieces = list(_pieces(store, found.id, cursor, attempt))
        cursor = pieces[-1][0] if pieces else cursor
        sink.write(_last_lines(b"".join(text for _, text in pieces), tail))
    woken_by: str | None = None
    while True:
        # Asked before reading: what a job wrote is on the bus before it is called ended.
        ended = not follow or _ended(store, found.id, attempt)
        reached = _drain(store, found.id, cursor, attempt, sink, patient=follow)
        if ended:
            sink.close()
            return
        # An entry that holds no text (an attempt was opened) must not wake us again and again.
        cursor = reached if reached != cursor else woken_by or cursor
        woken_by = _sleep_until_output(store, found.id, cursor)


def _drain(store: Store, job_id: str, cursor: str, attempt: int | None, sink: _Sink, *, patient: bool) -> str:
    while True:
        try:
            for entry, text in _pieces(store, job_id, cursor, attempt):
                sink.write(text, int(entry.partition("-")[0]))
                cursor = entry
        except BusUnavailable as error:
            if not patient:
                raise
            tell_lost(error)
            _until_back(store)
            continue
        sink.flush()
        return cursor


def _pieces(store: Store, job_id: str, after: str, attempt: int | None) -> Iterator[tuple[str, bytes]]:
    from trackside.bus import streams

    for entry, number, text in streams.output(store.client, job_id, after=after):
        if attempt is not None and number > attempt:
            return
        yield entry, text


def _ended(store: Store, job_id: str, attempt: int | None) -> bool:
    from trackside.models import AttemptState
    from trackside.retry import until_reachable

    def look() -> bool:
        job = store.job(job_id)
        if job.state.terminal or attempt is None or attempt > job.attempt:
            return job.state.terminal
        return attempt < job.attempt or store.attempt(job_id, attempt).state is AttemptState.ENDED

    return until_reachable(look, limit_s=_OUTAGE_LIMIT_S, lost=tell_lost)


def _sleep_until_output(store: Store, job_id: str, cursor: str) -> str | None:
    """Wait for the next entry of the stream; its id, None if none came."""
    from trackside.bus import keys

    try:
        stream = keys.output(job_id)
        after = "0-0" if cursor == "-" else cursor
        answer = cast(Any, store.client.xread({stream: after}, count=1, block=int(_BLOCK_S * 1000)))
    except BusUnavailable as error:
        tell_lost(error)
        _until_back(store)
        return None
    return str(answer[0][1][0][0].decode()) if answer else None


def tell_lost(error: BusUnavailable) -> None:
    """Say that the server is away and will be asked again."""
    say(f"trackside: {error.message}; trying again")


def _until_back(store: Store) -> None:
    from trackside.retry import until_reachable

    until_reachable(store.client.ping, limit_s=_OUTAGE_LIMIT_S)


def _last_lines(text: bytes, count: int) -> bytes:
    # Lines of a file end with \n alone: a progress bar's carriage returns draw the same line anew.
    return b"".join(io.BytesIO(text).readlines()[-count:]) if count else b""


class _Sink:
    """Where a program's output goes: to a pipe byte for byte, to a terminal made harmless."""

    def __init__(self) -> None:
        self._tty = sys.stdout.isatty()
        self._attempt: int | None = None
        self._within_line = False
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode

    def write(self, text: bytes, attempt: int | None = None) -> None:
        if self._tty:
            if attempt is not None and self._attempt not in (None, attempt):
                self._show(self._decode(b"", True))  # one that died may have left half a character
                head = "\n" if self._within_line else ""
                self._show(f"{head}--- attempt {attempt} ---\n")
            self._attempt = attempt or self._attempt
            self._show(self._decode(text))
        else:
            sys.stdout.buffer.write(text)

    def flush(self) -> None:
        sys.stdout.flush()

    def close(self) -> None:
        if self._tty:
            self._show(self._decode(b"", True))
        self.flush()

    def _show(self, text: str) -> None:
        shown = block(text)
        sys.stdout.write(shown)
        if shown:
            self._within_line = not shown.endswith("\n")


def events(
    ctx: typer.Context,
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", show_default=False, help="Default: all jobs.")] = None,
    follow: Follow = False,
    tail: Annotated[int | None, count("--tail", "Begin with the last N.", least=0)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document; with -f one a line.")] = False,
) -> None:
    """Print the history of a job, or of everything.

    Each change with its cause and what was behind it.

    --json: {"events": [{"kind", "at_ms", "job", "attempt", "cause", "old", "new", "by", "data"}]}; with -f one such
    event a line.
    """
    store = store_of(ctx)
    job_id = None if job is None else find_job(store, job).id
    from trackside.bus import streams

    cursor = streams.newest_event_id(store.client)
    if job_id is None:
        past = list(_past_events(store, cursor))
    else:
        past = [event for _, event in streams.history(store.client, job_id)]
    seen = {repr(event) for event in past} if follow else set()
    past = past if tail is None else past[len(past) - min(tail, len(past)) :]
    if as_json and not follow:
        print_json({"events": [record(event) for event in past]})
        return
    for event in past:
        _tell(event, with_job=job_id is None, as_json=as_json)
    if follow:
        _follow_events(store, job_id, cursor, as_json=as_json, seen=seen)


def _past_events(store: Store, until: str) -> Iterator[Event]:
    from trackside.bus import streams

    cursor = "0-0"
    while cursor != until:
        page = streams.read_events(store.client, cursor, block_s=0.001)
        for entry, event in page:
            cursor = entry
            if event is not None:
                yield event
            if entry == until:
                return
        if not page:
            return


def _follow_events(store: Store, job_id: str | None, cursor: str, *, as_json: bool, seen: set[str]) -> None:
    """Go on from `cursor`; `seen` holds what the job's own history told beyond it already."""
    from trackside.bus import streams

    while True:
        try:
            ended = job_id is not None and store.job(job_id).state.terminal
            page = streams.read_events(store.client, cursor, block_s=0.001 if ended else _BLOCK_S)
        except BusUnavailable as error:
            tell_lost(error)
            _until_back(store)
            continue
        for entry, event in page:
            cursor = entry
            if event is not None and job_id in (None, event.job) and repr(event) not in seen:
                _tell(event, with_job=job_id is None, as_json=as_json)
        if ended and not page:
            return


def _tell(event: Event, *, with_job: bool, as_json: bool) -> None:
    if as_json:
        print_json_line(record(event))
    else:
        print(event_line(event, with_job=with_job), flush=True)


def event_line(event: Event, *, with_job: bool) -> str:
    """One event as a line for people."""
    moved = f"{event.old or ''} -> {event.new}" if event.new is not None and event.old is not None else ""
    facts = " ".join(f"{name}={_fact(value)}" for name, value in event.data.items())
    number = f"#{event.attempt}" if event.attempt is not None else ""
    cause = event.cause if event.cause != event.kind.value else None
    words = [when(event.at_ms), event.job if with_job else None, number, event.kind.value, moved, cause, facts]
    return plain(" ".join(str(word) for word in words if word))


def _fact(value: Any) -> str:
    text = _DIGEST.sub(r"\1", plain(value))
    return f'"{text}"' if " " in text else text
