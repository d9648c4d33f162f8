"""The training side: what a script imports, and what runs an attempt.

Nothing here needs more than the standard library until a checkpoint is asked for; that needs torch.
"""

from __future__ import annotations

from trackside.sdk.run import Run, current_run, init, log

__all__ = ["Run", "current_run", "init", "log"]
