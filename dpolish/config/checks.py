"""What is wrong with a value, as a text or False, and the error that carries it to where the value was written."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from dpolish.errors import ConfigError


class SectionError(ConfigError):
    """Some fields of one section hold values that they may not hold."""

    def __init__(self, faults: Mapping[str, str]) -> None:
        super().__init__("\n".join(f"{name}: {fault}" for name, fault in faults.items()))
        self.faults = MappingProxyType(dict(faults))


def refuse(**faults: bool | str) -> None:
    """Raise one SectionError about every field whose fault is a text: `refuse(lr=lr < 0 and "is negative")`."""
    found = {name: fault for name, fault in faults.items() if isinstance(fault, str)}
    if found:
        raise SectionError(found)


def later(what: str, way_out: str) -> str:
    """Why a value is refused whose machinery comes with a later version."""
    return f"{what} not in this version: {way_out}"


def below(bound: int, value: float | None) -> bool | str:
    """The fault of a number under `bound`; null has none."""
    return value is not None and value < bound and f"must be {bound} or more, got {value:g}"


def not_above(bound: int, value: float) -> bool | str:
    """The fault of a number that is not over `bound`."""
    return value <= bound and f"must be above {bound}, got {value:g}"


def bad_ratio(value: float | None) -> bool | str:
    """The fault of a ratio outside [0, 1]; null has none."""
    return value is not None and not 0 <= value <= 1 and f"must be in [0, 1], got {value:g}"


def bad_decay(*rates: float) -> bool | str:
    """The fault of rates that are not all in [0, 1)."""
    return not all(0 <= rate < 1 for rate in rates) and f"must be in [0, 1), got {', '.join(f'{r:g}' for r in rates)}"


def empty(value: str | None) -> bool | str:
    """The fault of an empty text: what an unset shell variable leaves behind."""
    return value is not None and not value.strip() and "is empty; is a shell variable not set?"


def bad_devices(devices: int | Literal["auto"] | tuple[int, ...]) -> bool | str:
    """The fault of a number of devices below 1 that is not -1 (all), or of a list that is empty or names one twice."""
    if isinstance(devices, tuple):
        twice = len(set(devices)) < len(devices)
        return (not devices or twice or min(devices) < 0) and f"expected different device indices, got {list(devices)}"
    return devices != "auto" and devices != -1 and below(1, devices)


def bad_share_or_count(value: int | float) -> bool | str:
    """The fault of a float above 1.0 (a share) or of a negative number."""
    if isinstance(value, float) and value > 1:
        return f"a number with a point is a share, at most 1.0, got {value:g}; a count has no point: {value:.0f}"
    return below(0, value)


def bad_steps_or_ratio(steps: int | None, ratio: float | None) -> bool | str:
    """The fault of steps below 0, or given together with the ratio that stands for them."""
    if steps is not None and ratio is not None:
        return f"{steps} steps and a ratio of {ratio:g} are both given: give one of them, or null for the other"
    return below(0, steps)


def bad_splits(text: str | None) -> bool | str:
    """The fault of a text that is not three shares; null has none."""
    shares = re.fullmatch(r"\s*([\d.]+)\s*,\s*([\d.]+)\s*,\s*([\d.]+)\s*", text or "1,1,1")
    return (shares is None or not any(share.strip("0.") for share in shares.groups())) and (
        f"expected three shares such as '980,10,10', got {text!r}"
    )
