"""Trackside runs PyTorch training on the GPUs you own, and nothing gets lost.

The public names are loaded on first use, so that `import trackside` costs a training script almost nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trackside._version import __version__

if TYPE_CHECKING:
    from trackside.sdk import Run, current_run, init, log

__all__ = ["Run", "current_run", "init", "log", "__version__"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import trackside.sdk

        return getattr(trackside.sdk, name)
    raise AttributeError(f"module 'trackside' has no attribute {name!r}")
