"""Errors of a disk, and what to do about each."""

from __future__ import annotations

import errno
from typing import Final

_REMEDIES: Final = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "the quota of its disk is used up",
    errno.EFBIG: "the limit of file size is too low (ulimit -f)",
    errno.EROFS: "its disk is mounted read-only",
    errno.EACCES: "make its folder writable",
    errno.EPERM: "make its folder writable",
    errno.EIO: "look at its disk's health",
}
# Whatever was to be written there, it was not to blame.
FAILING: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


def remedy(number: int | None) -> str:
    """What to do about this error number."""
    return _REMEDIES.get(number or 0, "look at its disk")
