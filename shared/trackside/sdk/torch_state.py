"""Training state through torch: parts to files and back, random number generators to tensors and back.

Everything loads with `weights_only=True`, so that reading a checkpoint never runs code out of it. torch is imported
on first use.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from trackside.errors import CheckpointError
from trackside.sdk.checkpoints import HashingFile

_OLDEST: Final = (2, 10)  # before it, weights_only loading could still be made to run code
_PLAIN: Final = (bool, int, float, str, bytes, type(None))
_MACHINE_FAILED: Final = ("allocate memory", "unable to mmap")  # torch says it by a RuntimeError
_NUMPY_PLAIN: Final = "?bhilqBHILQefdgFDGUS"  # numpy's codes of numbers and text


def torch() -> ModuleType:
    """The torch module; raises CheckpointError when it is missing or too old."""
    try:
        import torch as module
    except ImportError as error:
        raise CheckpointError("checkpoints need torch: install torch>=2.10 in this environment") from error
    check_version(module.__version__)
    return module


def check_version(version: str) -> None:
    """Raise CheckpointError when `version` of torch is too old for checkpoints."""
    major, minor = version.split(".")[:2]
    if (int(major), int(minor)) < _OLDEST:
        raise CheckpointError(f"checkpoints need torch >= 2.10 and this is {version}: install a newer torch")


def check_part(name: str, part: Any) -> None:
    """Raise TypeError unless `part` can be saved and restored."""
    if _methods(part) is None:
        raise TypeError(
            f"checkpointer part {name!r} is a {type(part).__name__}: pass something with state_dict and "
            "load_state_dict, or a torch.Generator; plain values belong in .extra"
        )


def capture(part: Any) -> Any:
    """The state of a part."""
    methods = _methods(part)
    assert methods is not None  # noqa: S101 - check_part has refused it
    return getattr(part, methods[0])()


def snapshot(state: Any) -> Any:
    """A copy of `state` in the CPU's memory that nothing changes any more."""
    module = torch()
    copies: dict[Any, Any] = {}
    taken = _copied(state, module, copies)
    for device in {tensor.device for tensor, _ in copies.values() if tensor.is_cuda}:
        module.cuda.synchronize(device)
    return taken


def _copied(value: Any, module: ModuleType, copies: dict[Any, Any]) -> Any:
    if isinstance(value, module.Tensor):
        return _copied_tensor(value, module, copies)
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, dict):
        taken = copy.copy(value)  # of the same class, with what hangs on it, such as a module's versions
        for key, item in value.items():
            taken[key] = _copied(item, module, copies)
        return taken
    if type(value) in (list, tuple):
        return type(value)(_copied(item, module, copies) for item in value)
    return copy.deepcopy(value)


def _copied_tensor(tensor: Any, module: ModuleType, copies: dict[Any, Any]) -> Any:
    """The copy, one for all names under which the same tensor appears, as tied weights do."""
    if type(tensor) not in (module.Tensor, module.nn.Parameter) or tensor.layout is not module.strided:
        return tensor.detach().clone()
    shown = (tensor.dtype, tensor.is_conj(), tensor.is_neg())
    key = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), *shown)
    if key in copies and tensor.numel():
        return copies[key][1]
    with module.no_grad():
        on_gpu = tensor.is_cuda  # into pinned memory, so that the copies overlap; they are waited for once, at the end
        taken = module.empty_like(tensor, device="cpu" if on_gpu else tensor.device, pin_memory=on_gpu)
        taken.copy_(tensor, non_blocking=on_gpu)
    copies[key] = (tensor, taken)  # the tensor too: its memory must not be given out again meanwhile
    return taken


def restore(part: Any, state: Any) -> None:
    """Give a part the state that `capture` returned."""
    methods = _methods(part)
    assert methods is not None  # noqa: S101 - check_part has refused it
    getattr(part, methods[1])(state)


def _methods(part: Any) -> tuple[str, str] | None:
    for pair in (("state_dict", "load_state_dict"), ("get_state", "set_state")):
        if all(callable(getattr(part, name, None)) for name in pair):
            return pair
    return None


def writer(state: Any) -> Callable[[HashingFile], None]:
    """A function that writes `state` as a torch file."""
    return lambda out: torch().save(state, out)


def load(path: Path) -> Any:
    """Read a torch file onto the CPU without running anything in it; raises CheckpointError when that cannot be."""
    try:
        return _load(path)
    except (OSError, MemoryError) as error:
        raise CheckpointError(
            f"{path.name} could not be read ({type(error).__name__}: {str(error)[:300]}): look at its disk and at the "
            "machine's free memory"
        ) from error


def check_loads(path: Path) -> None:
    """Raise CheckpointError when what a torch file holds cannot be loaded, without reading its tensors.

    OSError or MemoryError means that this was not found out.
    """
    _load(path, mmap=True)


def _load(path: Path, *, mmap: bool = False) -> Any:
    module = torch()
    try:
        with module.serialization.safe_globals(_numpy_globals()):
            return module.load(path, weights_only=True, map_location="cpu", mmap=mmap)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _MACHINE_FAILED):
            raise MemoryError(str(error)) from error
        raise CheckpointError(
            f"{path.name} does not load with weights_only=True ({type(error).__name__}: {str(error)[:300]}): "
            "keep tensors and plain values in the state of that part"
        ) from error


def _numpy_globals() -> list[tuple[Any, str]]:
    """What loading numpy's scalars calls, none of which runs code of the file; as pairs, unlike a script's own list."""
    try:
        import numpy as np
    except ImportError:
        return []
    scalar = np.float64(0).__reduce__()[0]
    types: list[type] = [np.dtype, *{type(np.dtype(code)) for code in _NUMPY_PLAIN}]
    return [
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),  # of numpy 2 and of numpy 1
        *((kind, f"{kind.__module__}.{kind.__qualname__}") for kind in types),
    ]


def check_plain(value: Any, where: str) -> None:
    """Raise TypeError unless `value` is made of plain values, lists, tuples, dicts, tensors and numpy's scalars."""
    if type(value) in _PLAIN or isinstance(value, torch().Tensor) or _is_numpy_plain(value):
        return
    if type(value) in (list, tuple):
        for index, item in enumerate(value):
            check_plain(item, f"{where}[{index}]")
    elif type(value) is dict:
        for key, item in value.items():
            check_plain(key, f"a key of {where}")
            check_plain(item, f"{where}[{key!r}]")
    else:
        raise TypeError(f"{where} is a {type(value).__name__}: keep numbers, text, lists, dicts and tensors there")


def _is_numpy_plain(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic) and value.dtype.char in _NUMPY_PLAIN


def capture_rng() -> dict[str, Any]:
    """The state of every global generator in use: torch's, Python's, numpy's when it is loaded."""
    module = torch()
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch_cpu": module.get_rng_state(),
        "python": {"version": version, "words": _words(words), "gauss": gauss},
    }
    if module.cuda.is_available() and module.cuda.is_initialized():
        state["torch_cuda"] = module.cuda.get_rng_state_all()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        kind, keys, position, has_gauss, gauss = numpy.random.get_state(legacy=True)
        state["numpy"] = {
            "kind": str(kind),
            "keys": _words(keys.tolist()),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        }
    return state


def _words(words: Sequence[int]) -> Any:
    module = torch()
    return module.tensor(words, dtype=module.int64, device="cpu")  # whatever the script's default device is


def restore_rng(state: dict[str, Any]) -> list[str]:
    """Set the generators as `capture_rng` found them; returns, for people, what could not be."""
    module = torch()
    left_out = []
    module.set_rng_state(state["torch_cpu"])
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    cuda = state.get("torch_cuda") or []
    there = module.cuda.device_count() if cuda and module.cuda.is_available() else 0
    for index, device_state in enumerate(cuda[:there]):
        module.cuda.set_rng_state(device_state, index)
    if len(cuda) != there:
        left_out.append(f"random state of {len(cuda)} GPUs was saved and {there} are visible")
    if "numpy" in state:
        import numpy as np

        numpy = state["numpy"]
        keys = np.array(numpy["keys"].tolist(), dtype=np.uint32)
        np.random.set_state((numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["gauss"]))
    return left_out
