"""Finding the program that is submitted, and what can be known about it without running it."""

from __future__ import annotations

import ast
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trackside.errors import InvalidJob
from trackside.models import Program

_DOTTED: Final = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_MODULE: Final = re.compile(_DOTTED)
_FUNCTION: Final = re.compile(rf"({_DOTTED}):({_DOTTED})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A program, the folder to send along (None: nothing, it must be installed), and a name for people."""

    program: Program
    root: Path | None
    name: str


def find(target: str | None, module: str | None, root: Path | None, argv: tuple[str, ...]) -> Found:
    """The program that was meant; raises InvalidJob if it is missing or cannot be compiled."""
    given_root = None if root is None else _folder(root)
    if module is not None:
        return _module(module, given_root, argv)
    assert target is not None  # noqa: S101 -- the caller gives one of the two
    function = _FUNCTION.fullmatch(target)
    if function and not Path(target).exists():
        return _function(function.group(1), function.group(2), given_root, argv)
    return _script(Path(target), given_root, argv)


def _folder(path: Path) -> Path:
    folder = _absolute(path)
    if not folder.is_dir():
        raise InvalidJob(f"--root {path} is no folder: give the one to send along")
    return folder


def _script(path: Path, root: Path | None, argv: tuple[str, ...]) -> Found:
    if path.is_dir():
        raise InvalidJob(f"{path} is a folder: give the .py script in it, or -m for a module")
    if path.suffix != ".py":
        if ":" in str(path) and not path.exists():
            raise InvalidJob(f"{str(path)!r} is no function: write it as package.module:function")
        raise InvalidJob(f"{str(path)!r} is no .py script: give one, or package.module:function, or -m module")
    if not path.is_file():
        raise InvalidJob(f"there is no script {path} below {Path.cwd()}: check the path")
    script = _absolute(path)
    _parse(script)
    folder = root or script.parent
    if not script.is_relative_to(folder):
        raise InvalidJob(f"{path} is not in --root {folder}: give a folder that contains it")
    inside = script.relative_to(folder).as_posix()
    return Found(program=Program(kind="script", target=inside, argv=argv), root=folder, name=script.stem)


def _module(name: str, root: Path | None, argv: tuple[str, ...]) -> Found:
    if not _MODULE.fullmatch(name):
        raise InvalidJob(f"-m {name!r} is no module name: write it as package.module")
    file, folder = _locate(name, root)
    if file is not None:
        if file.name == "__init__.py":
            main = file.with_name("__main__.py")
            if not main.is_file():
                raise InvalidJob(f"package {name} has no __main__.py to run: give one of its modules")
            file = main
        _parse(file)
    return Found(program=Program(kind="module", target=name, argv=argv), root=folder, name=name.rpartition(".")[2])


def _function(module: str, function: str, root: Path | None, argv: tuple[str, ...]) -> Found:
    file, folder = _locate(module, root)
    if file is not None and not _may_define(_parse(file), function.partition(".")[0]):
        raise InvalidJob(f"{file} defines no {function!r}: check the name after the colon")
    program = Program(kind="function", target=f"{module}:{function}", argv=argv)
    return Found(program=program, root=folder, name=function.rpartition(".")[2])


def _locate(module: str, root: Path | None) -> tuple[Path | None, Path | None]:
    """The module's file and the folder it is in; a given root must hold it, the working directory may."""
    folder = root or Path.cwd()
    base = folder.joinpath(*module.split("."))
    for file in (base.with_name(base.name + ".py"), base / "__init__.py", base / "__main__.py"):
        if file.is_file():
            return file, folder
    if root is not None:
        raise InvalidJob(f"there is no module {module} in --root {root}: check the name or the folder")
    return None, None


def _parse(file: Path) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a string is for the program's run to tell
            return ast.parse(file.read_bytes(), filename=str(file))
    except OSError as error:
        raise InvalidJob(f"{file} cannot be read: {error.strerror}; check its permissions") from error
    except SyntaxError as error:
        raise InvalidJob(f"{file}, line {error.lineno}: {error.msg}; correct it and submit again") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise InvalidJob(f"{file} cannot be compiled: {error}; correct it and submit again") from error


def _may_define(tree: ast.Module, name: str) -> bool:
    """Whether the module might bind this name; only what certainly does not is refused."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                if node.name in (name, "__getattr__"):
                    return True
            case ast.alias(name=imported, asname=alias):
                if imported == "*" or (alias or imported.partition(".")[0]) == name:
                    return True
            case ast.Name(id=bound, ctx=ast.Store()):
                if bound == name:
                    return True
            case ast.Call(func=ast.Name(id="globals" | "exec" | "setattr")):
                return True
            case _:
                continue
    return False


def _absolute(path: Path) -> Path:
    # Not resolved: a link in the folder is sent as the file it is in the folder, under the name it has there.
    return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 -- see above
