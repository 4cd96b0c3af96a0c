"""Templates from anywhere: they render as transformers renders them, and a hostile one ends in an error."""

import time
from collections.abc import Iterator

import pytest
from jinja2 import TemplateError

from dpolish.data.templates import ChatTemplate, sandbox
from dpolish.data.templates.sandbox import TemplateOverrun, compiled
from dpolish.errors import ModelError
from dpolish.records import Message


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    monkeypatch.setattr(sandbox, "LONGEST", 1 << 16)
    return


TWICE = "{{% for a in range(99999) %}}{{% for b in range(99999) %}}{}{{% endfor %}}{{% endfor %}}"
HOSTILE = {
    "writes for ever": TWICE.format("x"),
    "writes nothing for ever": TWICE.format(""),
    "counts for ever": TWICE.format("{% set x = a + b %}"),
    "writes into a variable": f"{{% set text %}}{TWICE.format('xxxxxxxx')}{{% endset %}}",
    "writes in a block": f"{{% generation %}}{TWICE.format('x')}{{% endgeneration %}}",
    "calls itself twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "doubles a text": "{% set n = namespace(s='xx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "adds a text": "{% set n = namespace(s='xx') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubles a list": "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "multiplies a text": "{{ 'x' * 10 ** 10 }}",
    "multiplies from the left": "{{ 10 ** 10 * 'x' }}",
    "has a huge power": "{{ 10 ** (10 ** 10) }}",
    "pads a text": "{{ 'x'.ljust(10 ** 10) }}",
    "squares for ever": "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
}


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_ends_in_an_error(source: str) -> None:
    began = time.monotonic()
    with pytest.raises(TemplateOverrun):
        compiled(source)({})
    assert time.monotonic() - began < 2
    with pytest.raises(ModelError, match="folder: the chat template cannot be used: "):
        ChatTemplate("model", source, where="folder").render([Message("user", "Hi")], generate=False)


@pytest.mark.parametrize(
    "source",
    ["{{ ''.__class__.__mro__[1].__subclasses__()[0] }}", "{{ messages.append(1) }}", "{{ namespace(_a=1) }}"],
)
def test_the_sandbox_is_closed(source: str) -> None:
    with pytest.raises(TemplateError):
        compiled(source)({"messages": []})


def test_endless_recursion_is_an_error() -> None:
    with pytest.raises(RecursionError):
        compiled("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}")({})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ 'a' ~ 1 ~ none ~ x }}", "a1None"),
        (
            "{{ 'ab' * 3 }}{{ 3 * 'ab' }}{{ 2 ** 10 }}{{ 7 * 6 }}{{ [1] + [2] }}{{ 1.5 * 2 }}",
            "ab" * 6 + "102442[1, 2]3.0",
        ),
        ("{% for a in 'xyz' %}{{ loop.index }}{{ a }}{% if a == 'y' %}{% break %}{% endif %}{% endfor %}", "1x2y"),
        ("{% macro f(a, b='!') %}{{ a ~ b }}{% endmacro %}{{ f('x') }}{{ f('y', b='?') }}", "x!y?"),
        ("{{ {'é': '<'} | tojson }}", '{"é": "<"}'),
        ("{% for a in [] %}{% else %}none{% endfor %}", "none"),
    ],
)
def test_what_is_bounded_means_what_it_did(source: str, expected: str) -> None:
    assert compiled(source)({}) == expected


def test_a_filters_own_fault_is_python(short: None) -> None:
    with pytest.raises(TypeError):
        compiled("{{ 'a' + 1 }}")({})
