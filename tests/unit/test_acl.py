"""The rules themselves: built for the server's version, and closed where they must be."""

from __future__ import annotations

import re
from itertools import product

import pytest

from trackside.bus import acl
from trackside.bus.acl import ServerVersion

REDIS_6_2 = ServerVersion(flavour="redis", version=(6, 2, 14))
REDIS_7_0 = ServerVersion(flavour="redis", version=(7, 0, 15))
REDIS_8_2 = ServerVersion(flavour="redis", version=(8, 2, 2))
VALKEY_9_1 = ServerVersion(flavour="valkey", version=(9, 1, 2))
SERVERS = (REDIS_6_2, REDIS_7_0, REDIS_8_2, VALKEY_9_1)

WRITING = {"+set", "+hset", "+del", "+xadd", "+lpush", "+zadd", "+sadd", "+expire", "+publish"}


@pytest.mark.parametrize(("user", "server"), list(product(acl.USERS, SERVERS)), ids=str)
def test_no_user_gets_a_category_or_a_command_that_nobody_may_have(user: str, server: ServerVersion) -> None:
    rules = acl.rules(user, server)
    assert rules[:3] == ["resetkeys", "resetchannels", "-@all"]
    assert not [rule for rule in rules if rule.startswith("+@")]
    granted = {rule.removeprefix("+").split("|")[0].upper() for rule in rules if rule.startswith("+")}
    forbidden = set(acl.unused_commands(server)) - {"CONFIG"}  # the admin's is `config|get`
    assert granted.isdisjoint(forbidden | {"FLUSHALL", "FLUSHDB", "SCAN", "KEYS", "GETDEL", "ACL SETUSER"})
    assert "+config" not in rules
    assert "+acl" not in rules


@pytest.mark.parametrize("server", SERVERS, ids=str)
def test_the_dashboard_and_the_operator_get_no_command_that_writes_or_publishes(server: ServerVersion) -> None:
    assert WRITING.isdisjoint(acl.rules("dashboard", server))
    assert WRITING.isdisjoint(acl.rules("operator", server))
    assert set(acl.rules("trainer", server)) >= WRITING, "the list to look for must be one that is granted somewhere"


def test_rules_use_only_what_the_version_knows() -> None:
    old = " ".join(rule for user in acl.USERS for rule in acl.rules(user, REDIS_6_2))
    assert not re.search(r"%R~|\(|setinfo|xinfo", old)
    assert "%R~ts:*" in acl.rules("dashboard", REDIS_7_0)
    assert "+client|setinfo" not in acl.rules("trainer", REDIS_7_0)
    assert "+client|setinfo" in acl.rules("trainer", VALKEY_9_1)


def test_old_redis_opens_no_rq_key_to_the_command_line_as_it_cannot_open_it_for_reading_alone() -> None:
    assert not [rule for rule in acl.rules("submitter", REDIS_6_2) if "rq:" in rule]
    assert "%R~rq:*" in acl.rules("submitter", VALKEY_9_1)


def test_an_unknown_user_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rules for user 'root'"):
        acl.rules("root", VALKEY_9_1)


def test_lines_hold_digests_and_close_the_default_user() -> None:
    lines = acl.acl_lines(VALKEY_9_1, dict.fromkeys(acl.USERS, "a-password"))
    assert lines[0] == "user default off resetpass resetkeys resetchannels -@all"
    assert len(lines) == 1 + len(acl.USERS)
    assert "a-password" not in "\n".join(lines)
    assert len(acl.new_password()) == 43
    assert acl.new_password() != acl.new_password()


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=e0", REDIS_7_0),
        ("Valkey server v=9.1.2 sha=00000000:1 malloc=libc bits=64 build=15", VALKEY_9_1),
        ("Server v=7.0", None),
        ("", None),
    ],
)
def test_versions_are_read_from_what_programs_say(text: str, want: ServerVersion | None) -> None:
    assert acl.parse_version(text) == want


@pytest.mark.parametrize(("flavour", "version", "usable"), [("redis", (6, 0, 16), False), ("valkey", (7, 2, 5), True)])
def test_usable_starts_at_6_2(flavour: str, version: tuple[int, int, int], usable: bool) -> None:
    assert ServerVersion(flavour=flavour, version=version).usable is usable
