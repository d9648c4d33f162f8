#!/usr/bin/env python3
"""Make the passwords and the Redis users of a deployment; needs Python 3.11 and no installation.

    python3 deploy/make_secrets.py [--server "redis 8.0.0"] [DIRECTORY]

Passwords that are there already are kept; the users are written anew, so run it again after an upgrade. The directory
is closed to everybody else. The files in it are not: a container reads its one file under a user id of its own, and
cannot pass through the directory to the others.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "shared"))

from trackside.bus import acl
from trackside.secretfiles import ensure_password, private_dir, write_private

_READABLE = 0o644  # inside of a 0700 directory; see above


def main() -> int:
    """Write one file a user and `users.acl`, which holds digests only."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=Path(__file__).resolve().parent / "secrets")
    parser.add_argument("--server", default="redis 8.0.0", help="flavour and version, such as 'valkey 9.1.1'")
    arguments = parser.parse_args()
    server = acl.parse_version(arguments.server.replace(" ", " v="))
    if server is None or not server.usable:
        parser.error(f"--server {arguments.server!r}: give a flavour and a version from 6.2 on, such as 'redis 8.0.0'")
    directory = private_dir(arguments.directory)
    passwords = {user: ensure_password(directory / user, mode=_READABLE) for user in acl.USERS}
    write_private(directory / "users.acl", "\n".join(acl.acl_lines(server, passwords)) + "\n", mode=_READABLE)
    sys.stdout.write(f"users for {server} and their passwords are in {directory}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
