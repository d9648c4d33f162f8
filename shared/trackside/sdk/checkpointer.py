"""The checkpointer that a training script holds: what to save, when, and what was restored."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from trackside.errors import CheckpointDamaged, CheckpointError
from trackside.sdk import torch_state
from trackside.sdk.checkpoints import Checkpoint, CheckpointStore
from trackside.sdk.context import ResumePoint
from trackside.sdk.journal import now_ms

_RNG: Final = "_rng.pt"  # part names never start with an underscore
_EXTRA: Final = "_extra.pt"

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
    ) -> None:
        _check(parts, every, keep)
        self.step = 0
        self.extra: dict[str, Any] = {}
        self._store, self._parts, self._emit = store, dict(parts), emit
        self._every, self._keep = every, keep
        self._saved_step: int | None = None  # the newest step that is on the disk
        self._asked = False
        self._checked_load = False
        self._rng: dict[str, Any] | None = None
        self._now: Callable[[], int | None] = lambda: None  # the completed step, None inside of a step
        self._restore(resume)

    def save(self) -> None:
        """Save at the coming step boundary; outside of the step loop, at once."""
        step = self._now()
        if step is None:
            self._asked = True
        elif step != self._saved_step:
            self.save_step(step)

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be saved after `step`."""
        return self._asked or (self._every is not None and step % self._every == 0)

    def save_step(self, step: int) -> None:
        """Save the state after `step`; a disk that does not take it is told in a note, and training goes on."""
        if step == self._saved_step:
            return
        began = time.perf_counter()
        try:
            written = self._store.write(step, self._files())
        except OSError as error:
            self._note(f"the checkpoint of step {step} was not written ({error}): free space on its disk")
            return
        if not self._checked_load:
            self._check_loads(written.name)
        self._asked = False
        self._saved_step = step
        took_ms = round((time.perf_counter() - began) * 1000, 1)
        self._emit(
            {
                "k": "ck",
                "t": now_ms(),
                "s": step,
                "name": written.name,
                "bytes": written.size_bytes,
                "digest": written.digest,
                "took_ms": took_ms,
                "stall_ms": took_ms,
            }
        )
        self._store.prune(self._keep)

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
        files = {f"{name}.pt": torch_state.writer(torch_state.capture(part)) for name, part in self._parts.items()}
        files[_EXTRA] = torch_state.writer(self.extra)
        files[_RNG] = torch_state.writer(torch_state.capture_rng())
        return files

    def _check_loads(self, name: str) -> None:
        """Read the first checkpoint back: state that cannot be loaded must fail now, not at the first resume."""
        checkpoint = next(c for c in self._store.all() if c.name == name)
        try:
            for file in (*(f"{part}.pt" for part in self._parts), _EXTRA, _RNG):
                torch_state.load(checkpoint.path / file)
        except CheckpointError:
            self._store.quarantine(checkpoint)
            raise
        self._checked_load = True

    def _restore(self, resume: Sequence[ResumePoint] | None) -> None:
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
            return
        if resume:
            self._note("none of the recorded checkpoints could be used: training starts from step 1")

    def _load(self, checkpoint: Checkpoint) -> None:
        for name, part in self._parts.items():
            path = checkpoint.path / f"{name}.pt"
            if not path.is_file():
                there = ", ".join(sorted(p.stem for p in checkpoint.path.glob("[!_]*.pt"))) or "no part"
                raise CheckpointError(
                    f"{checkpoint.name} has no part {name!r} (it has {there}): "
                    "pass the same parts to the checkpointer, or submit a new job"
                )
            torch_state.restore(part, torch_state.load(path))
        self.extra = dict(torch_state.load(checkpoint.path / _EXTRA))
        self._rng = torch_state.load(checkpoint.path / _RNG)
        self.step = checkpoint.step
        self._saved_step = checkpoint.step

    def _note(self, text: str) -> None:
        self._emit({"k": "note", "t": now_ms(), "level": "warning", "text": text})


def _check(parts: Mapping[str, Any], every: int | None, keep: int) -> None:
    if every is not None and every < 1:
        raise ValueError(f"every is {every}: give a number of steps from 1, or None for the last step only")
    if keep < 1:
        raise ValueError(f"keep is {keep}: keep at least 1 checkpoint")
    if not parts:
        raise TypeError("the checkpointer has nothing to save: pass parts by name, such as model=model")
    for name, part in parts.items():
        if name.startswith("_") or Path(name).name != name:
            raise TypeError(f"{name!r} cannot name a part: use a plain name that starts with a letter")
        torch_state.check_part(name, part)
