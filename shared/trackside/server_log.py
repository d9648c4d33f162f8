"""Why a server ended at its start, from what it wrote to its log."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_DAMAGED: Final = re.compile(
    r"Bad file format reading the append only file|Unexpected end of file|Wrong signature trying to load DB"
    r"|Short read or OOM loading DB|Unrecoverable error reading the append only file|RDB CRC|Invalid AOF manifest"
    r"|Error reading the append only file|AOF file .* doesn't exist|Terminating server after rdb file reading failure"
    r"|Internal error in RDB reading",
    re.IGNORECASE,
)
_FILE: Final = re.compile(r"\b(appendonly\.aof[\w.]*|dump\.rdb)")
_NOISE: Final = re.compile(r"overcommit|Transparent Huge|somaxconn|TCP backlog")


def explain(log: str, facts: Mapping[str, str]) -> str:
    """One message for a person: what went wrong, and what to do."""
    if _DAMAGED.search(log):
        return _damaged(log, facts)
    if re.search(r"Could not create server TCP listening socket|Failed listening on port|Address already in use", log):
        return f"port {facts['port']} on 127.0.0.1 is taken: stop what uses it, or let Trackside choose another port"
    if re.search(r"opening Unix socket|unix socket", log, re.IGNORECASE) and "ailed" in log:
        return f"cannot make the socket {facts['socket']}: check the directory's permissions ({facts['log']})"
    if "No space left" in log:
        return f"the disk under {facts['data']} is full: make room, then start again"
    said = [line.strip() for line in log.splitlines() if line.strip() and not _NOISE.search(line)][-4:]
    return f"the server ended at once and said: {' | '.join(said) or 'nothing'}. Its log is {facts['log']}"


def _damaged(log: str, facts: Mapping[str, str]) -> str:
    files = [name for line in log.splitlines() if _DAMAGED.search(line) for name in _FILE.findall(line)]
    files = files or _FILE.findall(log)
    data = facts["data"]
    # The server program is its own repair tool when it is called by that name.
    tool = f"{facts['flavour']}-check-aof"
    file = f"{data}/appendonlydir/appendonly.aof.manifest" if ".aof." in "".join(files) else f"{data}/appendonly.aof"
    return (
        f"the stored data cannot be loaded: {files[-1] if files else 'a file'} in {data} is damaged. "
        f"Copy {data} aside first, then repair with: bash -c \"exec -a {tool} '{facts['program']}' --fix '{file}'\" "
        f"(the server's own words are in {facts['log']})"
    )
