#!/usr/bin/env python3
"""Print what an extra of the project needs, so that an image installs it in a layer that outlives source changes.

python3 requirements.py EXTRA...
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def main() -> int:
    """The base requirements and those of each extra named."""
    here = Path(__file__).resolve().parent
    path = next(folder / "pyproject.toml" for folder in (here, here.parent) if (folder / "pyproject.toml").exists())
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for extra in sys.argv[1:] for line in extras[extra])]
    sys.stdout.write("\n".join(wanted) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
