"""The package, its pinned versions and its deployment files agree with one another and with the folders."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from trackside.bus import acl
from trackside.config import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("supervisor", "trainer", "dashboard")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_wheel_has_every_package_and_names_no_other(project: dict[str, Any]) -> None:
    # A path that does not exist is passed over by hatch in silence.
    listed = set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    inits = [*ROOT.glob("shared/*/__init__.py"), *ROOT.glob("services/*/*/__init__.py")]
    assert listed == {str(init.parent.relative_to(ROOT)) for init in inits}
    assert all((ROOT / package / "py.typed").exists() for package in listed)


def test_every_file_of_the_source_distribution_exists(project: dict[str, Any]) -> None:
    included = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert [path for path in included if not (ROOT / path.lstrip("/")).exists()] == []


def test_every_requirement_is_pinned_to_a_version_it_allows(project: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    extras = project["project"]["optional-dependencies"]
    lines = [*project["project"]["dependencies"], *(line for extra in extras.values() for line in extra)]
    wanted = [Requirement(line) for line in lines]
    for requirement in wanted:
        if requirement.name != "trackside":
            version = pinned.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement.name} is not pinned: make constraints"
            assert requirement.specifier.contains(version), f"{requirement} does not allow {version}"
    assert not [version for version in pins.values() if "+" in version], (
        "a pin with a label installs on one machine only"
    )


def test_passwords_and_users_are_made_without_an_installation(tmp_path: Path) -> None:
    directory = tmp_path / "secrets"
    command = [sys.executable, "-I", "-S", str(ROOT / "deploy" / "make_secrets.py"), str(directory)]
    subprocess.run(command, check=True, capture_output=True, timeout=30, umask=0o077)

    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    passwords = {user: (directory / user).read_text().strip() for user in acl.USERS}
    assert (directory / "trainer").stat().st_mode & 0o444 == 0o444, "containers read it under another user id"
    server = acl.ServerVersion(flavour="redis", version=(8, 0, 0))
    assert (directory / "users.acl").read_text() == "\n".join(acl.acl_lines(server, passwords)) + "\n"

    subprocess.run([*command, "--server", "valkey 9.1.1"], check=True, capture_output=True, timeout=30)
    assert passwords == {user: (directory / user).read_text().strip() for user in acl.USERS}, "passwords must be kept"


def test_a_server_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "deploy" / "make_secrets.py"), str(tmp_path), "--server", "redis 5.0.0"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert refused.returncode == 2
    assert "from 6.2 on" in refused.stderr


def test_image_requirements_are_the_projects_own(project: dict[str, Any]) -> None:
    for service in SERVICES:
        dockerfile = (ROOT / "services" / service / "Dockerfile").read_text()
        found = re.search(r"python requirements\.py (.*?) >", dockerfile)
        assert found is not None
        command = [sys.executable, "-I", "-S", str(ROOT / "deploy" / "requirements.py"), *found[1].split()]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.splitlines()
        assert set(printed) >= set(project["project"]["dependencies"])
        assert ("torch" in " ".join(printed)) == (service == "trainer")
        assert ("streamlit" in " ".join(printed)) == (service == "dashboard")


def test_the_deployment_sets_only_settings_that_exist() -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    known = {PREFIX + name.upper() for name in Settings.__dataclass_fields__}
    set_in_containers = set(re.findall(r"^ +(TRACKSIDE_\w+):", compose, re.MULTILINE))
    assert set_in_containers
    assert set_in_containers <= known
    read_from_dotenv = set(re.findall(r"\$\{(TRACKSIDE_\w+)", compose))
    described = set(re.findall(r"^# (TRACKSIDE_\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert read_from_dotenv == described


def test_the_deployments_secrets_are_the_users(tmp_path: Path) -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    files = set(re.findall(r"\./deploy/secrets\}/([\w.]+)", compose))
    assert files == {*acl.USERS, "users.acl"}
    for service in SERVICES:
        assert f"redis://{service}@redis:6379/0" in compose
        assert f"PASSWORD_FILE: /run/secrets/{service}\n" in compose
