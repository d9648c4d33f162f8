"""I14 and I18: nothing old is shown as live, who may only read writes nothing, and what is forbidden is refused.

These are facts that the tests see which look at a dashboard or try something forbidden; here they are judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from trackside.oracle.history import History
from trackside.oracle.verdicts import SystemRule

READER: Final = "dashboard"  # the user of the bus that only reads


def _live(history: History) -> Iterator[str]:
    for each in history.shown:
        if each.live and each.age_s > each.limit_s:
            yield f"{each.what} was shown as live, {each.age_s:.1f} s old; {each.limit_s:g} s are the limit"


def _wrote_nothing(history: History) -> Iterator[str]:
    yield from (f"{each.by} could {each.what}" for each in history.denials if each.by == READER and not each.refused)


def _refused(history: History) -> Iterator[str]:
    for each in history.denials:
        if not each.refused:
            yield f"{each.by} could {each.what}"
        if each.told is False:
            yield f"nobody was told that {each.by} tried to {each.what}"
        if each.survived is False:
            yield f"what {each.by} tried ({each.what}) brought its victim down"


SYSTEM_RULES: Final = (
    SystemRule(
        invariant="I14", name="nothing old is shown as live", sees=lambda history: bool(history.shown), broken=_live
    ),
    SystemRule(
        invariant="I14", name="the dashboard's user wrote nothing",
        sees=lambda history: any(each.by == READER for each in history.denials),
        broken=_wrote_nothing,
    ),
    SystemRule(
        invariant="I18", name="forbidden is refused", sees=lambda history: bool(history.denials), broken=_refused
    ),
)  # fmt: skip
