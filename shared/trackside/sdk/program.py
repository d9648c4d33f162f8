"""Runs the user's program the way `python` would: as `__main__`, from its own folder, with its own arguments."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from trackside.errors import InvalidJob
from trackside.sdk.context import Program


def execute(program: Program, work_dir: Path, params: Mapping[str, Any]) -> None:
    """Run the program to its end; raises InvalidJob when it is not there, else whatever it raises."""
    if program.kind == "script":
        _run_script(program, work_dir)
    elif program.kind == "module":
        _run_module(program, work_dir)
    elif program.kind == "function":
        _call_function(program, work_dir, params)
    else:
        raise InvalidJob(f"a program is a script, a module or a function, not a {program.kind!r}: submit it again")


def _run_script(program: Program, work_dir: Path) -> None:
    path = work_dir / program.target
    if not path.is_file():
        raise InvalidJob(f"{program.target} is not in the job's folder: submit the folder that holds it")
    _set_path(path.parent.resolve())
    sys.argv = [program.target, *program.argv]
    _run_as_main(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), str(path), None)


def _run_module(program: Program, work_dir: Path) -> None:
    _set_path(work_dir)
    spec = _find(program.target)
    if spec.submodule_search_locations is not None:
        spec = _find(f"{program.target}.__main__")
    get_code = getattr(spec.loader, "get_code", None)
    code = get_code(spec.name) if get_code is not None else None
    if code is None:
        raise InvalidJob(f"module {program.target} has no Python code to run: name a module with a .py file")
    sys.argv = [spec.origin or program.target, *program.argv]
    _run_as_main(code, spec.origin, spec)


def _call_function(program: Program, work_dir: Path, params: Mapping[str, Any]) -> None:
    _set_path(work_dir)
    sys.argv = [program.target, *program.argv]
    sys.modules["__main__"] = ModuleType("__main__")
    module_name, _, function_name = program.target.partition(":")
    _find(module_name)
    found: Any = importlib.import_module(module_name)
    for name in function_name.split("."):
        found = getattr(found, name, None)
    if not callable(found):
        raise InvalidJob(f"{module_name} has no function {function_name!r}: submit module:function")
    found(**_arguments(found, program.target, params))


def _arguments(function: Any, target: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The params as keyword arguments; none for a function that takes none and reads `run.params` instead."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return params
    if not signature.parameters:
        return {}
    try:
        signature.bind(**params)
    except TypeError as error:
        raise InvalidJob(
            f"{target} cannot be called with the job's params ({error}): give the params it takes"
        ) from error
    return params


def _find(name: str) -> ModuleSpec:
    """The spec of the target module; InvalidJob only when it is the target itself that is missing."""
    missing = InvalidJob(
        f"there is no module {name!r} in the job's folder or the environment: submit the folder with it"
    )
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise missing from error
        raise
    except ValueError as error:
        raise missing from error
    if spec is None:
        raise missing
    return spec


def _run_as_main(code: CodeType, file: str | None, spec: ModuleSpec | None) -> None:
    """Run `code` as `__main__` and leave it there, for pickling, spawned children and exit handlers."""
    main = ModuleType("__main__")
    names: dict[str, Any] = {
        "__builtins__": __builtins__,
        "__spec__": spec,
        "__package__": spec.parent if spec else None,
    }
    if file is not None:
        names["__file__"] = file
    vars(main).update(names)
    sys.modules["__main__"] = main
    exec(code, vars(main))  # noqa: S102 - running the user's program is what an attempt is


def _set_path(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
