"""What a slot must be able to do before it gets work again: allocate, compute, and find the same result twice.

Run as an attempt like any other (`python -m trackside.selftest` does the same). On a GPU's slot it computes there; on
a CPU's it needs nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import tempfile
from typing import Final

_BYTES: Final = 16 * 1024 * 1024
_SIDE: Final = 256


def memory_holds() -> bool:
    """Whether memory gives back what was put into it."""
    block = bytes(range(256)) * (_BYTES // 256)
    return hashlib.sha256(block).digest() == hashlib.sha256(bytearray(block)).digest()


def processor_computes() -> bool:
    """Whether two ways to the same sum agree: sin² + cos² over many angles, exact to rounding."""
    total = math.fsum(math.sin(x) ** 2 + math.cos(x) ** 2 for x in range(20_000))
    return math.isclose(total, 20_000.0, rel_tol=1e-12)


def disk_takes() -> bool:
    """Whether the working directory takes a file and gives it back."""
    data = os.urandom(64 * 1024)
    with tempfile.TemporaryFile(dir=".") as file:
        file.write(data)
        os.fsync(file.fileno())
        file.seek(0)
        return file.read() == data


def device_computes() -> bool:
    """Whether the GPU that this process sees multiplies matrices as the processor does; true where there is none."""
    if not os.environ.get("CUDA_VISIBLE_DEVICES"):
        return True
    import torch

    values = torch.arange(_SIDE * _SIDE, dtype=torch.float64).reshape(_SIDE, _SIDE) / _SIDE
    there = values.to("cuda")
    return bool(torch.allclose((there @ there).cpu(), values @ values))


def main() -> None:
    """Run every check, say how each went, and fail if any did."""
    failed = []
    for check in (memory_holds, processor_computes, disk_takes, device_computes):
        passed = check()
        print(f"{check.__name__}: {'ok' if passed else 'FAILED'}", flush=True)
        if not passed:
            failed.append(check.__name__)
    if failed:
        sys.exit(f"self-test failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
