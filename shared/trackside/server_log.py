"""Why a server ended at its start, from what it wrote to its log."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

# Damage after which the good beginning of the file can be kept; the server's own repair tool does that.
_CUT_SHORT: Final = re.compile(
    r"Bad file format reading the append only file|Unexpected end of file reading", re.IGNORECASE
)
_BEYOND_REPAIR: Final = re.compile(
    r"Wrong signature trying to load DB|Short read or OOM loading DB|Unrecoverable error reading the append only file"
    r"|RDB CRC|AOF MANIFEST FILE ERROR|doesn't exist.*AOF|AOF .*doesn't exist|Internal error in RDB reading",
    re.IGNORECASE,
)
_FILE: Final = re.compile(r"\bappendonly\.aof[\w.]*\b")
_NOISE: Final = re.compile(
    r"overcommit|Transparent Huge|somaxconn|TCP backlog|lua-enable-insecure-api|'default' is disabled"
)


def explain(log: str, facts: Mapping[str, str]) -> str:
    """One message for a person: what went wrong, and what to do."""
    if _CUT_SHORT.search(log) or _BEYOND_REPAIR.search(log):
        return _damaged(log, facts)
    if re.search(r"Could not create server TCP listening socket|Failed listening on port|Address already in use", log):
        return f"port {facts['port']} on 127.0.0.1 is taken: stop what uses it, or let Trackside choose another port"
    if re.search(r"failed.*unix socket|unix socket.*failed", log, re.IGNORECASE):
        return (
            f"cannot make the socket {facts['socket']}: check its directory; the server's words are in {facts['log']}"
        )
    if "No space left" in log:
        return f"the disk under {facts['data']} is full: make room, then start again"
    said = [line.strip() for line in log.splitlines() if line.strip() and not _NOISE.search(line)][-4:]
    return f"the server ended at once and said: {' | '.join(said) or 'nothing'}. Its log is {facts['log']}"


def _damaged(log: str, facts: Mapping[str, str]) -> str:
    lines = [line for line in log.splitlines() if _CUT_SHORT.search(line) or _BEYOND_REPAIR.search(line)]
    named = [name for line in lines for name in _FILE.findall(line)] or _FILE.findall(log)
    data = facts["data"]
    if facts["several_files"]:
        path = f"{data}/appendonlydir/{named[-1] if named else 'appendonly.aof.manifest'}"
    else:
        path = f"{data}/appendonly.aof"
    opening = f"the stored data cannot be loaded: {path} is damaged. Copy {data} aside first"
    if not _CUT_SHORT.search(log):
        return (
            f"{opening}; this file cannot be repaired, so put it back from a copy, or start empty with: "
            f"mv '{data}' '{data}.damaged' (the server's words are in {facts['log']})"
        )
    # The server program is its own repair tool when it is called by that name. It gets the one file:
    # given the manifest, Valkey's tool (9.1.2) calls its own base file damaged.
    return (
        f"{opening}, then cut it at the damage with: "
        f"bash -c \"exec -a {facts['flavour']}-check-aof '{facts['program']}' --fix '{path}'\" "
        f"(what follows the damage is lost; the server's words are in {facts['log']})"
    )
