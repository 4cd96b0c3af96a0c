"""OmegaConf's `${…}`: where a value holds one, how one is marked as plain text, and the resolvers of NeMo's files."""

import re

from omegaconf import OmegaConf


def has_interpolation(value: object) -> bool:
    """True where a text of the value holds `${`."""
    if isinstance(value, dict):
        return any(has_interpolation(item) for item in value.values())
    if isinstance(value, list):
        return any(has_interpolation(item) for item in value)
    return isinstance(value, str) and "${" in value


def escaped(value: object) -> object:
    """The value with every `${` marked as plain text."""
    if isinstance(value, dict):
        return {name: escaped(item) for name, item in value.items()}
    if isinstance(value, list):
        return [escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _multiply(*factors: float) -> float:
    product: float = 1
    for factor in factors:
        product *= factor
    return product


def _int_div(numerator: int, denominator: int) -> int:
    return numerator // denominator


for _name, _resolver in (("multiply", _multiply), ("int_div", _int_div)):
    if not OmegaConf.has_resolver(_name):
        OmegaConf.register_new_resolver(_name, _resolver)
