"""What the tokenizers library raises, as ModelErrors."""

from collections.abc import Iterator
from contextlib import contextmanager

from dpolish.errors import ModelError

_LONGEST = 200
_PANIC = "PanicException"
"""What Python gets to see of a panic in the library; it is no Exception, and cannot be imported."""


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turn whatever the library says of its input into a ModelError that begins with `what`."""
    try:
        yield
    except ModelError:
        raise
    except BaseException as error:  # the library raises nothing narrower
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        reason = " ".join(str(error).split())[:_LONGEST]
        raise ModelError(f"{what}: {reason if reason.isprintable() else ascii(reason)}") from error
