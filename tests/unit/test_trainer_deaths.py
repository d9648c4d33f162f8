"""How a worker died, and whose doing that was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from trackside_trainer.leftovers import Death
from trackside_trainer.slotfiles import TakenAttempt

TAKEN = TakenAttempt(slot="s", job="j", attempt=1, attempt_dir="/x", worker_pid=1, worker_started=1)
TOGETHER = "its worker and its agent went down together, as when a host goes down"
STOOD_STILL = "the worker stood still for 30 s"


@pytest.mark.parametrize(
    ("death", "words", "signal", "host"),
    [
        (Death.seen(9), "the worker was killed (SIGKILL)", "SIGKILL", False),
        (Death.seen(1 << 8), "the worker ended with exit code 1", None, False),
        (Death.seen(None), "the worker died", None, False),
        (Death.seen(0), "the worker stopped in order before the server had taken its report", None, True),
        (Death.seen(9, STOOD_STILL), f"{STOOD_STILL} and was ended by its agent", "SIGKILL", True),
        (Death.found(TAKEN), TOGETHER, None, True),
        (Death.found(replace(TAKEN, boot=None)), TOGETHER, None, True),
        (Death.found(replace(TAKEN, boot="b")), "its host went down, and has been started anew since", None, True),
    ],
)
def test_who_died_together_tells_whose_doing_it_was(death: Death, words: str, signal: str | None, host: bool) -> None:
    assert (death.words, death.signal, death.host) == (words, signal, host)


@pytest.mark.parametrize("seen", [Death.seen(9), Death.seen(0)])
def test_a_death_that_was_noted_is_found_as_it_was_seen(seen: Death, tmp_path: Path) -> None:
    path = tmp_path / "taken.json"
    replace(TAKEN, death=seen.words, death_signal=seen.signal, death_host=seen.host).write(path)
    taken = TakenAttempt.read(path)
    assert taken is not None
    assert Death.found(taken) == seen
