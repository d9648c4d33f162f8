"""The first code of a worker's process, forked from the agent."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, NoReturn, cast

from trackside import logs, processes
from trackside.config import Settings
from trackside.models import Slot
from trackside.processes import become_subreaper
from trackside_trainer import slotfiles
from trackside_trainer.work import Work


def become_worker(settings: Settings, slot: Slot, url: str) -> NoReturn:
    """The forked worker's life; never returns into the agent's code."""
    code = 1
    try:
        os.setsid()  # a Ctrl-C in the terminal is the agent's to handle
        become_subreaper()  # nothing that an attempt leaves behind may escape
        processes.drop_descriptors()
        for number in (signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN if number != signal.SIGCHLD else signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        sys.stderr = cast(Any, logs.Forgiving(sys.stderr))  # what is printed there by others may fail as well
        logs.configure(settings, role="worker", slot=slot.id, host=slot.host)
        lock = slotfiles.slot_lock(settings.home, slot.id)
        if lock.take():
            work = Work(settings, slot, url, lock)
            signal.signal(signal.SIGTERM, work.ask_to_stop)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            code = work.run()
        else:
            logs.get().error("slot_taken", holder=lock.holder())
    except BaseException:  # noqa: BLE001 -- whatever happens, this copy of the agent must end here
        logs.get().exception("worker_failed")
    finally:
        os._exit(code)
