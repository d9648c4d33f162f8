"""Imports once what every attempt needs, so that workers and attempts are forked with it in memory.

Two things would break the copies: a thread, which a fork does not take along (the first parallel operation of the
child would wait for it for ever), and a CUDA context, which does not survive a fork.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from trackside.errors import ConfigurationError

_BLAS_SETTERS: Final = (
    *("openblas_set_num_threads", "openblas_set_num_threads64_"),
    *("scipy_openblas_set_num_threads", "scipy_openblas_set_num_threads64_"),
)


def preload() -> int:
    """Import and warm up torch and our own code; returns the number of modules.

    Raises ConfigurationError when a thread is left running.
    """
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # else `torch.cuda.is_available()` poisons every fork
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # it starts its threads at import; an attempt gets its own number back
    import numpy as np
    import torch

    torch.set_num_threads(1)
    import torch._dynamo  # the first optimizer imports it: 805 modules, 1.4 to 2.2 s

    import trackside_trainer.forked  # noqa: F401 -- for the forks

    _one_step()
    np.random.default_rng(0)
    gc.collect()
    gc.freeze()  # the collector then leaves these pages alone, and they stay shared
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise ConfigurationError(
            f"{threads} threads run after the imports, and a fork takes only one along: "
            "look for a sitecustomize or a plug-in that starts threads"
        )
    return len(sys.modules)


def as_if_fresh(threads: int) -> None:
    """Give a forked attempt what a fresh interpreter has: BLAS threads, and random numbers of its own."""
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.seed()  # else every attempt forked from one parent draws the same numbers
    _widen_blas(threads)


def _widen_blas(threads: int) -> None:
    if threads <= 1:
        return
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    for path in {line.split(maxsplit=5)[5] for line in lines if "openblas" in line}:
        library = ctypes.CDLL(path)
        for name in _BLAS_SETTERS:
            with suppress(AttributeError):
                getattr(library, name)(threads)


def _one_step() -> None:
    import torch

    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
