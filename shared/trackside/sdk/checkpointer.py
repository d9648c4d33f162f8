"""The checkpointer that a training script holds: what to save, when, and what was restored.

At a step boundary the state is copied, and that is all that the training loop waits for; a thread writes the copy.
One is written at a time: a checkpoint that comes due meanwhile waits a moment for it, and is left out if that does not
do. Only when the directory has its name does the journal's line tell of it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from trackside.errors import CheckpointDamaged, CheckpointError
from trackside.sdk import disk, torch_state
from trackside.sdk.background import Background
from trackside.sdk.checkpoints import Checkpoint, CheckpointStore, check_to_go_on
from trackside.sdk.context import ResumePoint
from trackside.sdk.journal import now_ms

_RNG: Final = "_rng.pt"  # part names never start with an underscore
_EXTRA: Final = "_extra.pt"
_PATIENCE_S: Final = 0.2  # so that a loop faster than its disk redoes no more than it was told to
_TOLD_AT: Final = frozenset(10**power for power in range(12))  # of things that may happen very often
_FAILURES_TOLD: Final = 5

Emit = Callable[[Mapping[str, Any]], object]


class Checkpointer:
    """Saves the parts it was given at step boundaries, and has restored them when it is returned.

    `step` is the step that was restored, 0 for a fresh start. `extra` is a dict of plain values (counters, the best
    result) that is saved and restored too.
    """

    def __init__(
        self,
        store: CheckpointStore,
        parts: Mapping[str, Any],
        *,
        every: int | None,
        keep: int,
        resume: Sequence[ResumePoint] | None,
        emit: Emit,
        best: str | None = None,
        best_mode: str = "min",
        background: bool = True,
        accepted: Callable[[], int | None] = lambda: None,
        lost_for: Callable[[], int] = lambda: 0,
    ) -> None:
        _check(parts, every, keep, best, best_mode)
        self.step = 0
        self.extra: dict[str, Any] = {}
        self.saved_step: int | None = None  # the newest step that is on the disk, and in the journal
        self.trouble = 0  # the error number for which the newest checkpoint is not on the disk and in the journal
        self._store, self._parts, self._emit = store, dict(parts), emit
        self._accepted, self._lost_for = accepted, lost_for
        self._every, self._keep = every, keep
        self._best, self._best_mode = best, best_mode
        self._best_value: float | None = None
        self._background = Background() if background else None
        self._failed = 0  # in a row
        self._happened: Counter[str] = Counter()
        self._asked = False
        self._rng: dict[str, Any] | None = None
        self._now: Callable[[], int | None] = lambda: None  # the completed step, None inside of a step
        self._restore(resume)

    def save(self) -> None:
        """Save at the coming step boundary; outside of the step loop, at once.

        What changes after a step was saved, as after the last one, is not saved any more, and a note says so.
        """
        step = self._now()
        if step is None:
            self._asked = True
            return
        self.settle()
        if step == self.saved_step:
            self._note(
                f"the state after step {step} is on the disk already, and what changed since is not saved: "
                "change it inside of the step loop"
            )
        self.save_step(step, wait=True)

    @property
    def asked(self) -> bool:
        """Whether `save` was called for the coming boundary."""
        return self._asked

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be saved after `step`."""
        return self._asked or (self._every is not None and step % self._every == 0)

    def postpone(self) -> None:
        """Save at the next boundary that allows it."""
        self._asked = True

    def see(self, values: Mapping[str, Any]) -> None:
        """Take in logged metrics: one of them may tell which checkpoint is the best."""
        if self._best is not None and self._best in values:
            value = values[self._best]
            self._best_value = None if isinstance(value, str) else float(value)

    def check(self) -> None:
        """Raise what the thread found wrong with the state; a disk's errors it has only told."""
        failure = self._background.failure if self._background is not None else None
        if failure is not None and self._background is not None:
            self._background.failure = None
            raise failure

    def settle(self) -> None:
        """Wait until what is being written is on the disk."""
        if self._background is not None:
            self._background.settle()

    def save_step(self, step: int, *, wait: bool = False) -> None:
        """Save the state after `step`; a disk that does not take it is told in a note, and training goes on.

        With `wait` it is on the disk when this returns.
        """
        began = time.perf_counter()
        if self._background is not None and self._background.busy:
            if wait or self._asked:
                self.settle()
            elif not self._background.settle_within(_PATIENCE_S):
                self._skip(step)
                return
        self.check()
        self._asked = False
        if step == self.saved_step:
            return
        files = self._files()
        facts: dict[str, Any] = {}
        if self._best_value is not None:
            facts["metrics"] = {self._best: self._best_value}
            self._best_value = None  # it was measured of this state, not of later ones

        def write(stall_ms: float | None) -> None:
            self._write(step, files, facts, began, stall_ms)

        if wait or self._background is None:
            write(None)
        else:
            stall_ms = _ms_since(began)
            self._background.start(lambda: write(stall_ms))

    def _write(
        self,
        step: int,
        files: Mapping[str, Callable[[Any], None]],
        facts: Mapping[str, Any],
        began: float,
        stall_ms: float | None,
    ) -> None:
        try:
            written = self._store.write(step, files, facts)
            self._check_loads(step, self._store.root / written.name)
        except OSError as error:
            self._failed += 1
            self.trouble = error.errno or 0
            if self._failed <= _FAILURES_TOLD or self._failed in _TOLD_AT:
                times = "" if self._failed <= _FAILURES_TOLD else f", {self._failed} times in a row"
                self._note(
                    f"the checkpoint of step {step} was not written ({error}){times}: {disk.remedy(error.errno)}; "
                    "the older ones are kept"
                )
            return
        self._failed = 0
        took_ms = _ms_since(began)
        told = self._emit(
            {
                "k": "ck",
                "t": now_ms(),
                "s": step,
                "name": written.name,
                "bytes": written.size_bytes,
                "digest": written.digest,
                "took_ms": took_ms,
                "stall_ms": took_ms if stall_ms is None else stall_ms,
            }
        )
        if told is False:  # nobody will ever hear of it, so no attempt would resume from it
            self.trouble = self._lost_for()
            return
        self.saved_step, self.trouble = step, 0
        try:
            self._store.prune(self._keep, best=self._best, best_mode=self._best_mode, accepted=self._accepted())
        except OSError as error:
            self._note_at_times(
                "unpruned",
                "checkpoints that are not needed any more were not removed",
                f", for the disk failed ({error}): {disk.remedy(error.errno)}",
            )

    def _skip(self, step: int) -> None:
        self._note_at_times(
            "skipped",
            f"the checkpoint of step {step} was left out",
            ", the one before is still being written: save less often, or to a faster disk",
        )

    def restore_rng(self) -> None:
        """Set the random number generators as they were; for right before the first step, after loaders were built."""
        if self._rng is not None:
            for text in torch_state.restore_rng(self._rng):
                self._note(f"{text}: steps with random numbers there will differ from an undisturbed run")
            self._rng = None

    def bind(self, now: Callable[[], int | None]) -> None:
        """Say where to ask for the completed step."""
        self._now = now

    def _files(self) -> dict[str, Callable[[Any], None]]:
        torch_state.check_plain(self.extra, "extra")
        states = {f"{name}.pt": torch_state.capture(part) for name, part in self._parts.items()}
        states |= {_EXTRA: self.extra, _RNG: torch_state.capture_rng()}
        if self._background is not None:
            states = torch_state.snapshot(states)
        return {name: torch_state.writer(state) for name, state in states.items()}

    def _check_loads(self, step: int, path: Path) -> None:
        """Read a checkpoint back: state that cannot be loaded must fail now, not at a resume without older ones."""
        try:
            for file in (*(f"{part}.pt" for part in self._parts), _EXTRA, _RNG):
                torch_state.check_loads(path / file)
        except FileNotFoundError:  # somebody removed it: then it was not written
            raise
        except (OSError, MemoryError) as error:
            self._note_at_times(
                "unread",
                f"the checkpoint of step {step} was not read back",
                f", for the machine failed ({type(error).__name__}: {error}): look at its disk and at its free memory",
            )
        except CheckpointError:
            with suppress(OSError):
                self._store.quarantine(Checkpoint(path=path, step=step, attempt=self._store.attempt))
            raise

    def _restore(self, resume: Sequence[ResumePoint] | None) -> None:
        check_to_go_on(self._store.root, resume or ())
        for checkpoint, digest in self._store.candidates(resume):
            try:
                self._store.verify(checkpoint, digest)
                self._load(checkpoint)
            except CheckpointError as error:
                if checkpoint.path.exists():
                    if not isinstance(error, CheckpointDamaged):
                        raise
                    self._store.quarantine(checkpoint)
                # else an overtaken attempt that was still alive pruned it while it was read
                self._emit({"k": "damaged", "t": now_ms(), "name": checkpoint.name, "why": str(error)})
                continue
            self._emit({"k": "restored", "t": now_ms(), "s": checkpoint.step, "name": checkpoint.name})
            if resume and checkpoint.step < resume[0].step:
                self._note(f"{resume[0].name} was to go on from and could not be used: goes on from {checkpoint.name}")
            return
        if resume:
            self._note("none of the recorded checkpoints could be used: training starts from step 1")

    def _load(self, checkpoint: Checkpoint) -> None:
        there = sorted(path.stem for path in checkpoint.path.glob("[!_]*.pt"))
        for name, part in self._parts.items():
            if name not in there:
                raise CheckpointError(
                    f"{checkpoint.name} has no part {name!r} (it has {', '.join(there) or 'no part'}): "
                    "pass the same parts to the checkpointer, or submit a new job"
                )
            torch_state.restore(part, torch_state.load(checkpoint.path / f"{name}.pt"))
        unread = [name for name in there if name not in self._parts]
        if unread:
            self._note(
                f"{checkpoint.name} also has {', '.join(unread)}, which the checkpointer was not given: not restored"
            )
        self.extra = dict(torch_state.load(checkpoint.path / _EXTRA))
        self._rng = torch_state.load(checkpoint.path / _RNG)
        self.step = checkpoint.step
        self.saved_step = checkpoint.step

    def _note_at_times(self, kind: str, what: str, why: str) -> None:
        """Tell of what may happen very often, the more rarely the more often it does."""
        self._happened[kind] += 1
        count = self._happened[kind]
        if count in _TOLD_AT:
            self._note(what + ("" if count == 1 else f" ({count} so far)") + why)

    def _note(self, text: str) -> None:
        self._emit({"k": "note", "t": now_ms(), "level": "warning", "text": text})


def _ms_since(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 1)


def _check(parts: Mapping[str, Any], every: int | None, keep: int, best: object, best_mode: str) -> None:
    if best is not None and not isinstance(best, str):
        raise TypeError("best is the name of a metric; give the part another name")
    if every is not None and every < 1:
        raise ValueError(f"every is {every}: give a number of steps from 1, or None for the last step only")
    if keep < 1:
        raise ValueError(f"keep is {keep}: keep at least 1 checkpoint")
    if best_mode not in ("min", "max"):
        raise ValueError(f"best_mode is {best_mode!r}: use 'min' or 'max'")
    if not parts:
        raise TypeError("the checkpointer has nothing to save: pass parts by name, such as model=model")
    for name, part in parts.items():
        if name.startswith("_") or Path(name).name != name:
            raise TypeError(f"{name!r} cannot name a part: use a plain name that starts with a letter")
        torch_state.check_part(name, part)
