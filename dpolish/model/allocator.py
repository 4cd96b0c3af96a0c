"""Freed memory stays with the process, where the C library would hand it back after every use.

A training step frees and takes the same gigabytes each time. Pages that go back to the kernel are cleared and mapped
again one by one when they are next touched: a hundred thousand faults a step for a model of 135M parameters.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_NEVER = 2**31 - 1
_LARGE = 2**30


def keep_freed_memory() -> bool:
    """Ask glibc to keep what is freed; False where the C library is another one and nothing was changed."""
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(_MMAP_THRESHOLD, _LARGE)) and bool(library.mallopt(_TRIM_THRESHOLD, _NEVER))
