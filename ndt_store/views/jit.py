"""How kernels are compiled; importing this module imports numba, so it happens in the functions that run a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

__all__ = ["jit"]

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


def jit(*fastmath: str) -> Callable[[_Kernel], _Kernel]:
    """Compile at the first call, and keep the result beside the module or in the user's cache if either can be written.

    The interpreter lock is released while a kernel runs, and division by zero gives infinity or NaN as in numpy.

    Parameters
    ----------
    *fastmath : str
        Liberties of LLVM's floating-point arithmetic that the kernel allows.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath)}

    def decorate(function: _Kernel) -> _Kernel:
        try:
            kernel: _Kernel = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither place can be written
            kernel = numba.njit(**options)(function)
        return kernel

    return decorate
