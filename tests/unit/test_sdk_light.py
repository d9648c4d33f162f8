"""Importing Trackside costs a training script next to nothing, and needs nothing installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import trackside
import trackside.sdk

HEAVY = ["torch", "redis", "rq", "typer", "rich", "numpy", "structlog", "tenacity", "pydantic", "asyncio"]


def modules_after(code: str, *flags: str) -> set[str]:
    script = f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, *flags, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "code", ["import trackside", "import trackside; trackside.init", "import trackside.sdk.runner"]
)
def test_no_heavy_module_is_imported(code: str) -> None:
    loaded = modules_after(code)
    assert [name for name in HEAVY if name in loaded] == []
    assert "trackside" in loaded


def test_import_trackside_loads_nothing_but_itself() -> None:
    extra = modules_after("import trackside") - modules_after("import typing, __future__")
    assert extra == {"trackside", "trackside._version"}


def test_it_runs_where_only_the_standard_library_is_installed(tmp_path: Path) -> None:
    # No site-packages: as a foreign interpreter is, with the package's folder on its path.
    package = str(Path(trackside.__file__).parents[1])
    script = f"""
import sys; sys.path.insert(0, {package!r})
import trackside
import trackside.sdk.runner, trackside.sdk.checkpoints
from trackside.sdk.journal import JournalWriter, JournalReader
JournalWriter("j").metrics(1, {{"loss": 0.5, "n": 2**70}}, 3)
print(open("j").read(), list(JournalReader("j")), "orjson" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    line = '{"k":"m","s":1,"t":3,"m":{"loss":0.5,"n":1180591620717411303424}}\n'
    assert done.stdout.startswith(line)
    assert done.stdout.rstrip().endswith("False")


def test_the_public_names_are_what_is_there() -> None:
    assert sorted(trackside.__all__) == ["Run", "__version__", "current_run", "init", "log"]
    for name in trackside.sdk.__all__:
        assert getattr(trackside, name) is getattr(trackside.sdk, name)
    assert set(trackside.sdk.__all__) == set(trackside.__all__) - {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        trackside.nothing  # noqa: B018 - reading it is the test
