"""The run: what a training script talks to, inside of a job and outside of one.

Inside of a job the runner makes the run before the script starts, and `init` hands it out. Outside, `init` makes a
run that prints and keeps its checkpoints under `.trackside/`, so that the same script works and resumes by itself.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from trackside.errors import ConfigurationError, NotInJob, StopRequested
from trackside.sdk.context import AttemptContext, ResumePoint
from trackside.sdk.divergence import DEFAULT, Watch
from trackside.sdk.journal import JournalWriter, now_ms
from trackside.sdk.page import Command, ControlPage, Phase
from trackside.sdk.values import Arriving, Plain, fact, number

if TYPE_CHECKING:
    from trackside.sdk.checkpointer import Checkpointer

_MAX_ARRIVING: Final = 4096  # records waiting for a GPU; beyond it the oldest is waited for, so that memory is bounded
_MAX_STEP: Final = 2**53  # every reader of JSON holds whole numbers as far as that
_SAVES_FIRST: Final = frozenset({Command.PREEMPT.reason, Command.PAUSE.reason})
LEAVES_AT_ONCE: Final = frozenset({Command.CANCEL.reason, Command.FENCED.reason})

_current: ContextVar[Run | None] = ContextVar("trackside_run", default=None)
_process_run: list[Run] = []  # threads start with an empty context, and they belong to the same run


class Sink(Protocol):
    """Where a run's records go: the journal, or the terminal."""

    trouble: int  # the error number for which a record was lost most recently

    def write(self, record: Mapping[str, Any]) -> object: ...

    def metrics(self, step: int, values: Mapping[str, Any], time_ms: int) -> object: ...

    def close(self) -> None: ...


class Summary(MutableMapping[str, Any]):
    """A run's results by name; setting one writes it at once."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._values: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._values[key] = value = fact(key, value)
        self._sink.write({"k": "summary", "t": now_ms(), "m": {key: value}})

    def __delitem__(self, key: str) -> None:
        raise TypeError(f"the summary {key!r} is already on record: set it to None instead")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Run:
    """One run of a training script; use `trackside.init()` to get it."""

    def __init__(
        self,
        *,
        id: str,  # noqa: A002 - the attribute's public name
        attempt: int,
        name: str,
        params: Mapping[str, Any],
        files_dir: Path,
        checkpoints_dir: Path,
        sink: Sink,
        page: ControlPage,
        resume: tuple[ResumePoint, ...] | None,
    ) -> None:
        files_dir.mkdir(parents=True, exist_ok=True)
        self.id, self.attempt, self.name = id, attempt, name
        self.params: Mapping[str, Any] = MappingProxyType(dict(params))
        self.dir = files_dir
        self.summary: MutableMapping[str, Any] = Summary(sink)
        self._checkpoints_dir, self._resume = checkpoints_dir, resume
        self._sink, self._page = sink, page
        self._step = 0  # the step that is being done, else the last one
        self._completed = 0
        self._in_step = False
        self._looping = False
        self._loop_used = False
        self._left_inside = False  # of a step: the loop was left by `break` or an error
        self._asked_to_stop: str | None = None
        self._pid = os.getpid()
        self.left_by: StopRequested | None = None  # what ended it, whatever the script makes of that
        self._checkpointer: Checkpointer | None = None
        self._watch = Watch()
        self._waiting: deque[tuple[int, int, dict[str, Plain | Arriving]]] = deque()

    @classmethod
    def of_attempt(cls, context: AttemptContext) -> Run:
        """The run of an attempt, writing to its journal and reading its control page."""
        return cls(
            id=context.job,
            attempt=context.attempt,
            name=context.name,
            params=context.params,
            files_dir=context.files_dir,
            checkpoints_dir=context.checkpoints_dir,
            sink=JournalWriter(context.journal, max_bytes=context.journal_max_bytes),
            page=ControlPage.open(context.page),
            resume=context.resume,
        )

    @property
    def step(self) -> int:
        """The step that is being done, else the last one that was; 0 before the first."""
        return self._step

    def log(self, step: int | None = None, **metrics: Any) -> None:
        """Record numbers of a step, the present one unless given; returns at once and never fails for a full disk.

        Raises TypeError, naming the key, for what is no number.
        """
        if not self._looping:
            self._page.opened()
        values: dict[str, Plain | Arriving] = {}
        arriving = False
        for key, value in metrics.items():
            if type(value) is float and value - value == 0:  # the common case, without a call; false for NaN and inf
                values[key] = value
                continue
            values[key] = found = number(key, value)
            arriving = arriving or type(found) is Arriving
        at = self._step if step is None else _whole(step)
        if arriving or self._waiting:
            self._waiting.append((at, now_ms(), values))
            self._write_arrived()
        else:
            self._write(at, values, now_ms())

    def steps(self, total: int | None = None) -> Iterator[int]:
        """Yield the steps that are left, counted from 1, up to `total` or without end.

        Between two steps progress is told, a due checkpoint saved, and a request to stop obeyed. One loop a run.
        """
        if total is not None and _whole(total) < 0:
            raise ValueError(f"total is {total}: give the number of steps, 0 or more")
        if self._loop_used:
            raise ConfigurationError(
                "run.steps was used before: train in one loop, so that a resume knows where it was"
            )
        self._loop_used = True
        return self._steps(total)

    def checkpointer(
        self,
        *,
        every: int | None = 100,
        keep: int = 3,
        best: str | None = None,
        best_mode: Literal["min", "max"] = "min",
        background: bool = True,
        **parts: Any,
    ) -> Checkpointer:
        """Save `parts` each `every` steps, at a stop and after the last step; restores what is there at once.

        Parts have state_dict and load_state_dict, or are torch generators. The newest `keep` checkpoints are kept, and
        the one at which the metric `best` was lowest (or highest). The loop waits for a copy of the state only; with
        `background` off it waits for the disk.
        """
        from trackside.sdk.checkpointer import Checkpointer
        from trackside.sdk.checkpoints import CheckpointStore

        if self._checkpointer is not None:
            raise ConfigurationError("this run has a checkpointer: pass all parts to one")
        if self._loop_used:
            raise ConfigurationError("make the checkpointer before run.steps, so that the first step is known")
        made = Checkpointer(
            CheckpointStore(self._checkpoints_dir, self.attempt),
            parts,
            every=every,
            keep=keep,
            best=best,
            best_mode=best_mode,
            background=background,
            resume=self._resume,
            emit=self._sink.write,
            lost_for=lambda: self._sink.trouble,
            accepted=lambda: self._page.accepted,
        )
        made.bind(self._step_to_save)
        self._step = self._completed = made.step
        self._checkpointer = made
        self._page.saves = True
        return made

    def request_stop(self, reason: str) -> None:
        """Stop at the next boundary; raises StopRequested at once when no step loop is active. For signal handlers.

        A pause stands on the page until it is taken back, and is refused there where steps would be lost.
        """
        if reason != Command.PAUSE.reason:
            self._asked_to_stop = reason
        elif self._looping or self.left_by is not None:  # a second one would cut off what the script does at the first
            return
        elif not self._saved:
            self._page.refuse(self._page.asks, self._trouble)
            return
        if not self._looping:
            self.left_by = StopRequested(reason)
            raise StopRequested(reason)  # another: one that is raised holds on to all that the script has

    def opened(self) -> None:
        """Say that the script uses this run: from here on it is expected to come to its first step."""
        self._page.opened()

    def record(self, record: Mapping[str, Any]) -> None:
        """Write a record of any kind; for the runner."""
        self._sink.write(record)

    def flush(self) -> None:
        """Write what still waits for a GPU, waiting for it."""
        while self._waiting:
            self._write_first()

    def forget(self) -> None:
        """Leave what still waits for a GPU unwritten."""
        self._waiting.clear()

    def settle(self) -> None:
        """Finish a checkpoint that is being written."""
        if self._checkpointer is not None:
            self._checkpointer.settle()

    def watch(self, names: Sequence[str]) -> None:
        """Stop the run when one of these metrics stays NaN or infinite; none of them: never."""
        if tuple(names) != self._watch.names:
            self._watch = Watch(names)

    def close(self) -> None:
        """Flush, finish a checkpoint that is being written, and close the journal."""
        self.flush()
        self.settle()
        self._sink.close()

    def _steps(self, total: int | None) -> Iterator[int]:
        page, first = self._page, self._completed + 1
        page.phase = Phase.STEPPING  # before `first`: whoever finds that set finds a loop that runs or is over
        page.total, page.first = total, first
        page.boundary(self._completed)
        self._sink.write({"k": "begin", "t": now_ms(), "pid": os.getpid(), "total": total, "from": first})
        self._looping = True
        waits = True
        try:
            self._obey()
            self.left_by = None  # what was swallowed before has been taken back, else it would not go on
            if self._checkpointer is not None:
                self._checkpointer.restore_rng()
            for step in itertools.count(first) if total is None else range(first, total + 1):
                self._step = step
                self._in_step = True
                yield step
                self._in_step = False
                self._boundary(step, last=step == total)
        except GeneratorExit:
            if self._in_step and self._checkpointer is not None and self._checkpointer.asked:
                self._note(
                    f"the step loop was left inside of step {self._step}, at whose end a checkpoint was to be saved: "
                    "nothing was; call save() after the loop"
                )
            raise
        except StopRequested as stop:
            waits = stop.reason not in LEAVES_AT_ONCE
            raise
        finally:
            self._left_inside, self._in_step, self._looping = self._in_step, False, False
            if os.getpid() == self._pid:  # else a child that the script forked leaves its copy of the loop
                page.phase = Phase.STARTING  # what follows, such as a test, has no steps to be judged by
                self.flush()
                if waits:
                    self.settle()

    def _boundary(self, step: int, *, last: bool) -> None:
        """Tell progress, save what is due, obey a command: in this order, so that a stop loses no step."""
        self._completed = step
        self._page.boundary(step)
        checkpointer = self._checkpointer
        due = checkpointer is not None and (last or checkpointer.due(step))
        if due or last:
            self.flush()  # a snapshot waits for the GPU anyway, and what was logged tells whether to take it
        elif self._waiting:
            self._write_arrived()
        if self._watch.verdict is not None:
            self.left_by = self._watch.verdict
            raise self._watch.verdict
        if checkpointer is not None:
            checkpointer.check()
            if due and self._stop_reason() is None:
                self._sink.write({"k": "due", "t": now_ms(), "s": step})  # what a death costs is judged by it
                if self._watch.suspects(step):
                    checkpointer.postpone()
                else:
                    self._save(checkpointer, wait=last)
        self._obey()

    def _step_to_save(self) -> int | None:
        """The step that a checkpoint of now is of, None inside of one."""
        if self._in_step:
            return None
        if self._left_inside:
            self._note(
                f"the step loop was left inside of step {self._step}: a checkpoint that is saved now counts "
                f"{self._completed} steps, and who goes on from it does step {self._step} again"
            )
        return self._completed

    def _note(self, text: str) -> None:
        self._sink.write({"k": "note", "t": now_ms(), "level": "warning", "text": text})

    def _save(self, checkpointer: Checkpointer, *, wait: bool) -> None:
        self._page.phase = Phase.SAVING
        checkpointer.save_step(self._completed, wait=wait)
        self._page.phase = Phase.STEPPING

    def _stop_reason(self) -> str | None:
        page = self._page
        command = page.command
        if command is Command.NONE or (command is Command.PAUSE and page.refused is not None):
            return self._asked_to_stop
        return command.reason

    def _obey(self) -> None:
        """Stop if that is asked; for a pause only where no step is lost by it."""
        page = self._page
        while (stop := self._stop_reason()) is not None:
            asks = page.asks
            if stop in _SAVES_FIRST and self._checkpointer is not None and self._completed > 0:
                self._save(self._checkpointer, wait=True)
            if stop == Command.PAUSE.reason:
                if page.command is not Command.PAUSE:  # taken back, or more was asked while it was saved
                    continue
                if not self._saved:
                    page.refuse(asks, self._trouble)
                    continue
            self.left_by = StopRequested(stop)
            raise StopRequested(stop)

    @property
    def _saved(self) -> bool:
        """Whether a next attempt would have no step to do again."""
        saver = self._checkpointer
        return self._completed == 0 or (saver is not None and saver.saved_step == self._completed)

    @property
    def _trouble(self) -> int:
        return self._checkpointer.trouble if self._checkpointer is not None else 0

    def _write_arrived(self) -> None:
        waiting = self._waiting
        while waiting and (
            len(waiting) > _MAX_ARRIVING
            or all(value.here() for value in waiting[0][2].values() if type(value) is Arriving)
        ):
            self._write_first()

    def _write_first(self) -> None:
        step, time_ms, values = self._waiting.popleft()
        here = {key: value.get() if isinstance(value, Arriving) else value for key, value in values.items()}
        self._write(step, here, time_ms)

    def _write(self, step: int, values: Mapping[str, Any], time_ms: int) -> None:
        self._sink.metrics(step, values, time_ms)
        self._watch.see(step, values)
        if self._checkpointer is not None:
            self._checkpointer.see(values)


def _whole(step: int) -> int:
    try:
        found = step.__index__()
    except AttributeError:
        raise TypeError(f"a step is a whole number, not a {type(step).__name__}") from None
    if abs(found) > _MAX_STEP:
        raise ValueError(f"step {found} is beyond 2**53, which readers cannot hold: count in larger units")
    return found


def set_current(run: Run | None) -> None:
    """Make `run` the one that `init` and `log` find, in every thread of this process."""
    _process_run[:] = [] if run is None else [run]
    _current.set(run)


def _forget_the_parents_values() -> None:
    """In a child that the script forks: what waits for a GPU is its parent's to write."""
    for run in _process_run:
        run.forget()


os.register_at_fork(after_in_child=_forget_the_parents_values)


def _find() -> Run | None:
    return _current.get() or (_process_run[0] if _process_run else None)


def init(*, name: str | None = None, params: Mapping[str, Any] | None = None, watch: Sequence[str] = DEFAULT) -> Run:
    """The current run: in a job the attempt's, whatever name and params; a second call returns it again.

    A run whose metrics named in `watch` stay NaN or infinite for three logged steps stops; it goes back to its last
    checkpoint before that.
    """
    run = _find()
    if run is None:
        from trackside.sdk.local import local_run

        run = local_run(name, params or {})
        set_current(run)
    run.opened()
    run.watch(watch)
    return run


def current_run() -> Run:
    """The current run; raises NotInJob outside of a job before `trackside.init()`."""
    run = _find()
    if run is None:
        raise NotInJob("there is no current run: call trackside.init() first")
    return run


def log(step: int | None = None, **metrics: Any) -> None:
    """`current_run().log(...)`."""
    current_run().log(step, **metrics)
