"""What this machine offers: packages and instructions. GPUs are in `gpu/limits.py`."""

from functools import cache
from importlib.util import find_spec

from exlstm.runtime.internals import assume_constant, has_bfloat16_products


@cache
def installed(package: str) -> bool:
    """Whether a package is there; looked up once, for the search takes longer than a small op."""
    return find_spec(package) is not None


@cache
def missing_numba() -> str | None:
    """What `no_numba` answers; looked up once."""
    if not installed("numba"):
        return "Numba is not installed"
    from numba.core import config

    off = vars(config)["DISABLE_JIT"]  # an attribute that is made at import, and that no type tells of
    return "Numba's compiler is switched off by NUMBA_DISABLE_JIT" if off else None


@assume_constant
def no_numba() -> str | None:
    """Why there is no Numba to compile kernels with, or None."""
    return missing_numba()


@assume_constant
def has_triton() -> bool:
    """Whether Triton is installed; torch for NVIDIA and AMD GPUs brings it along."""
    return installed("triton")


@cache
def has_bfloat16() -> bool:
    """What `bfloat16_is_emulated` denies; looked up once."""
    return has_bfloat16_products()


@assume_constant
def bfloat16_is_emulated() -> bool:
    """Whether this CPU has no instructions for products in bfloat16; torch then takes about a hundred times as long."""
    return not has_bfloat16()
