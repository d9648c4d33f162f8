"""Why an attempt ended."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from trackside.models import Reason
from trackside_trainer.ending import Exit, judge

OK, FAILED, STOPPED, KILLED = 0, 1 << 8, 75 << 8, int(signal.SIGKILL)


def end(outcome: str, error: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"k": "end", "outcome": outcome, "error": error, **more}


ERROR = {"type": "ValueError", "message": "bad\nmore", "traceback": "Traceback ..."}
EXIT = {"type": "SystemExit", "message": "the program exited with code 143", "traceback": "Traceback ..."}
LOADER = {
    "type": "RuntimeError",
    "message": "DataLoader worker (pid(s) 12) exited unexpectedly",
    "traceback": "RuntimeError: DataLoader worker (pid 12) is killed by signal: Killed. \n\nThe above exception ...",
}
RESET = {
    "type": "ConnectionResetError",
    "message": "[Errno 104] Connection reset by peer",
    "traceback": 'File ".../torch/utils/data/dataloader.py", line 1275, in _try_get_data',
}
EARLY = end("succeeded", early=True)
STOPS = (Reason.PREEMPTED, Reason.PAUSED, Reason.CANCELLED, Reason.TIMEOUT, Reason.STALLED)


@pytest.mark.parametrize(
    ("record", "seen", "reason"),
    [
        (end("succeeded"), Exit(status=OK), Reason.SUCCEEDED),
        (end("succeeded"), Exit(status=None), Reason.SUCCEEDED),  # written last of all: only its worker died
        (end("succeeded"), Exit(status=OK, asked=Reason.CANCELLED), Reason.SUCCEEDED),
        (end("succeeded"), Exit(status=KILLED), Reason.KILLED),
        (end("succeeded"), Exit(status=FAILED), Reason.USER_ERROR),
        (EARLY, Exit(status=OK), Reason.SUCCEEDED),  # nobody asked it to leave
        *((EARLY, Exit(status=OK, asked=asked), asked) for asked in STOPS),
        (EARLY, Exit(status=None, asked=Reason.PREEMPTED), Reason.PREEMPTED),
        *((end("succeeded"), Exit(status=OK, asked=asked), Reason.SUCCEEDED) for asked in STOPS),
        *((end("user_error", EXIT), Exit(status=FAILED, asked=asked), asked) for asked in STOPS),
        *((end("user_error", ERROR, early=True), Exit(status=FAILED, asked=asked), asked) for asked in STOPS),
        (end("user_error", ERROR, early=True), Exit(status=FAILED), Reason.USER_ERROR),
        (end("user_error", EXIT), Exit(status=FAILED), Reason.USER_ERROR),
        (end("user_error", ERROR), Exit(status=FAILED), Reason.USER_ERROR),
        (end("oom_gpu", ERROR), Exit(status=FAILED), Reason.OOM_GPU),
        (end("cuda_error", ERROR), Exit(status=FAILED), Reason.CUDA_ERROR),
        (end("invalid_job", ERROR), Exit(status=FAILED), Reason.INVALID_JOB),
        (end("preempted"), Exit(status=STOPPED), Reason.PREEMPTED),
        (end("preempted"), Exit(status=STOPPED, asked=Reason.TIMEOUT), Reason.TIMEOUT),
        (end("user_error", ERROR), Exit(status=FAILED, asked=Reason.CANCELLED), Reason.CANCELLED),
        (end("user_error", ERROR), Exit(status=FAILED, asked=Reason.PREEMPTED), Reason.USER_ERROR),
        (end("made up"), Exit(status=FAILED), Reason.USER_ERROR),
        (end("lost"), Exit(status=FAILED), Reason.USER_ERROR),  # not for an attempt to say of itself
        (None, Exit(status=OK), Reason.USER_ERROR),
        (None, Exit(status=3 << 8), Reason.USER_ERROR),
        (None, Exit(status=KILLED), Reason.KILLED),
        (None, Exit(status=KILLED, out_of_memory="the kernel killed 1"), Reason.OOM_HOST),
        (end("user_error", LOADER), Exit(status=FAILED, out_of_memory="the kernel killed 1"), Reason.OOM_HOST),
        (end("user_error", LOADER), Exit(status=FAILED), Reason.USER_ERROR),
        (end("user_error", RESET), Exit(status=FAILED, out_of_memory="the kernel killed 1"), Reason.OOM_HOST),
        (
            end("user_error", {**RESET, "traceback": 'File ".../requests/api.py"'}),
            Exit(status=FAILED, out_of_memory="the kernel killed 1"),
            Reason.USER_ERROR,
        ),
        (end("user_error", ERROR), Exit(status=FAILED, out_of_memory="the kernel killed 1"), Reason.USER_ERROR),
        (None, Exit(status=int(signal.SIGSEGV), out_of_memory="the kernel killed 1"), Reason.KILLED),
        (None, Exit(status=KILLED, asked=Reason.CANCELLED, killed_by_us=True), Reason.CANCELLED),
        (None, Exit(status=int(signal.SIGTERM), asked=Reason.PREEMPTED), Reason.PREEMPTED),
        (None, Exit(status=KILLED, asked=Reason.TIMEOUT, killed_by_us=True), Reason.TIMEOUT),
        (None, Exit(status=KILLED, lost_gpu="GPU-a"), Reason.GPU_LOST),
        (end("cuda_error", ERROR), Exit(status=FAILED, lost_gpu="GPU-a"), Reason.GPU_LOST),
        (end("diverged", ERROR), Exit(status=FAILED, lost_gpu="GPU-a"), Reason.DIVERGED),
        (None, Exit(status=KILLED, asked=Reason.CANCELLED, killed_by_us=True, lost_gpu="GPU-a"), Reason.CANCELLED),
    ],
)
def test_the_reason_follows_from_end_line_exit_status_and_what_was_asked(
    record: dict[str, Any] | None, seen: Exit, reason: Reason
) -> None:
    assert judge(record, seen).reason is reason


def test_an_outcome_carries_the_facts_and_a_sentence_for_people() -> None:
    outcome = judge(end("user_error", ERROR), Exit(status=FAILED), last_step=7, seen_by="worker:s")
    assert outcome.detail == "ValueError: bad"
    assert outcome.failure is not None
    assert outcome.failure.traceback == "Traceback ..."
    assert (outcome.exit_code, outcome.signal, outcome.last_step, outcome.seen_by) == (1, None, 7, "worker:s")


def test_a_signal_is_named() -> None:
    outcome = judge(None, Exit(status=int(signal.SIGSEGV) | 0x80))  # with a core dump
    assert (outcome.signal, outcome.exit_code) == ("SIGSEGV", None)
    assert outcome.detail == "the training process was killed (SIGSEGV), a crash in native code"


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (int(signal.SIGKILL), "not by Trackside: the kernel does not say by whom"),
        (int(signal.SIGABRT), "a library gave up"),
        (137 << 8, "a shell's word for SIGKILL"),
        (3 << 8, "exited with code 3 without"),
    ],
)
def test_an_end_without_words_is_explained(status: int, says: str) -> None:
    assert says in (judge(None, Exit(status=status)).detail or "")


def test_a_disk_is_blamed_only_where_the_process_lived_to_write_its_end() -> None:
    unwritten = end("succeeded", unwritten=True)
    assert "its disk" in (judge(unwritten, Exit(status=OK)).detail or "")
    assert "its disk" not in (judge(unwritten, Exit(status=KILLED)).detail or "")


def test_who_asked_for_a_stop_is_told() -> None:
    stranger = judge(end("preempted"), Exit(status=STOPPED), first_step=1)
    assert (stranger.reason, (stranger.detail or "")[:31]) == (Reason.PREEMPTED, "somebody other than Trackside a")
    ours = judge(end("preempted"), Exit(status=STOPPED, asked=Reason.PREEMPTED), first_step=1)
    assert ours.detail == "stopped at a step boundary to make room"
    nobody_saw = judge(end("preempted"), Exit(status=None), first_step=1)
    assert [each.stranger for each in (stranger, ours, nobody_saw)] == [True, False, False]


def test_a_stalled_attempt_says_which_clock_and_what_it_did_then() -> None:
    why = "no step for 3.1 s (limit 3 s)"
    killed = judge(None, Exit(status=KILLED, asked=Reason.STALLED, why=why, killed_by_us=True))
    assert (killed.reason, killed.detail) == (
        Reason.STALLED,
        f"{why}; it did not stop within its grace and was killed",
    )
    obeyed = judge(end("preempted"), Exit(status=STOPPED, asked=Reason.STALLED, why=why))
    assert obeyed.reason is Reason.STALLED
    assert (obeyed.detail or "").startswith(f"{why}; asked to stop")


def test_divergence_carries_its_first_bad_step() -> None:
    record = {**end("diverged", ERROR), "bad_step": 41}
    outcome = judge(record, Exit(status=FAILED))
    assert (outcome.reason, outcome.bad_step) == (Reason.DIVERGED, 41)
    assert judge({**record, "outcome": "user_error"}, Exit(status=FAILED)).bad_step is None


def test_a_stop_before_the_first_step_says_that_nothing_was_saved() -> None:
    detail = judge(end("preempted"), Exit(status=STOPPED, asked=Reason.PREEMPTED), first_step=None).detail
    assert detail == "stopped before its first step: the next attempt starts over"
    stranger = judge(end("preempted"), Exit(status=STOPPED), first_step=None).detail
    assert (stranger or "").startswith("stopped by somebody other than Trackside (SIGTERM) before its first step")


def test_a_stop_of_a_script_that_tells_no_steps_says_how_long_it_ran() -> None:
    seen = Exit(status=STOPPED, asked=Reason.PREEMPTED, stepless=True)
    detail = judge(end("preempted"), seen, first_step=None, ran_ms=46_000).detail
    assert detail == "stopped after 46 s; no steps are known of it: the next attempt starts over"


def test_an_end_by_a_handler_of_the_script_s_own_is_told_as_that() -> None:
    preempted = judge(EARLY, Exit(status=OK, asked=Reason.PREEMPTED), first_step=1)
    assert preempted.detail == "asked to make room; it ended by itself, before its end as far as is known"
    limit = "the job's time limit of 3 s was reached"
    timed_out = judge(EARLY, Exit(status=OK, asked=Reason.TIMEOUT, why=limit))
    assert (timed_out.detail or "").startswith(f"{limit}; it ended by itself")
