"""Chat templates are code from elsewhere: they run in transformers' sandbox, for a bounded time, to a bounded length.

The sandbox keeps templates from Python's inside. It does not bound loops within loops, or text that doubles. So here
every pass of a loop and every call of a macro looks at the clock, and arithmetic that would make huge texts or numbers
is refused, as is a call with a huge number. What stays unbounded is what a single filter makes of bounded values.
"""

import time
from collections.abc import Callable, Mapping, Sized
from functools import lru_cache
from typing import Any, TypeVar

from jinja2 import Template, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from transformers.utils import chat_template_utils

SECONDS = 2.0
"""The longest that rendering one conversation may take."""
LONGEST = 1 << 26
"""Most characters of a rendered conversation, and of any text that is put together on the way."""
_LARGEST = 1 << 20  # number that may be handed to a call: str.ljust and the like take lengths

_Body = TypeVar("_Body", nodes.For, nodes.Macro)
_compile: Callable[[str], Template] = chat_template_utils._compile_jinja_template


class TemplateOverrun(Exception):
    """A template took too long or grew too large: its own fault, whatever the messages."""


@lru_cache(maxsize=32)
def compiled(source: str) -> Callable[[Mapping[str, object]], str]:
    """The function that renders a template with variables. Raises TemplateSyntaxError; its calls, TemplateOverrun."""
    environment = _BoundedEnvironment(_compile("").environment)  # never theirs for this: compiling folds constants
    template = environment.from_string(source)

    def render(variables: Mapping[str, object]) -> str:
        environment.deadline = time.monotonic() + SECONDS
        parts, length = [], 0
        for part in template.generate(variables):
            parts.append(part)
            length += len(part)
            if length > LONGEST:
                raise TemplateOverrun(f"it writes more than {LONGEST:,} characters")
        return "".join(parts)

    return render


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    """transformers' environment with bounds."""

    intercepted_binops = frozenset({"+", "*", "**"})

    def __init__(self, theirs: Any) -> None:
        super().__init__(
            trim_blocks=theirs.trim_blocks,
            lstrip_blocks=theirs.lstrip_blocks,
            extensions=[type(extension) for extension in theirs.extensions.values()],
        )
        self.filters, self.tests, self.globals = theirs.filters, theirs.tests, theirs.globals
        self.deadline = 0.0
        self.joined = _joined

    @property
    def tick(self) -> None:
        """Read in every pass of a loop and call of a macro: an attribute, for a call through the sandbox is slow."""
        if time.monotonic() > self.deadline:
            raise TemplateOverrun(f"it takes longer than {SECONDS:g} seconds")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ARG002 - jinja's signature
        """The result of an operator."""
        if type(left) is str and type(right) is str and operator == "+" and len(left) + len(right) <= LONGEST:
            return left + right  # nearly always
        if _size(operator, left, right) > LONGEST:
            raise TemplateOverrun(f"{operator!r} would make a value beyond all bounds")
        return self.binop_table[operator](left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of a call."""
        if __obj is _joined:
            return _joined(*args)
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and abs(value) > _LARGEST:
                raise TemplateOverrun(f"it calls a function with the number {value}")
        return super().call(__context, __obj, *args, **kwargs)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        watched = _Watch().visit(source)
        return super()._generate(watched, *args, **kwargs)


class _Watch(NodeTransformer):
    """Puts the clock into loops and macros, and the bound on lengths into `~`."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        return self._ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        return self._ticking(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        return nodes.Call(nodes.EnvironmentAttribute("joined"), node.nodes, [], None, None, lineno=node.lineno)

    def _ticking(self, node: _Body) -> _Body:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(nodes.EnvironmentAttribute("tick"), lineno=node.lineno))
        return node


def _joined(*parts: object) -> str:
    """What `~` makes."""
    text = "".join(map(str, parts))
    if len(text) > LONGEST:
        raise TemplateOverrun(f"it puts together a text of more than {LONGEST:,} characters")
    return text


def _size(operator: str, left: object, right: object) -> int:
    """Characters or items of the result of an operator, at most; 64 a bit of a number, which cost more; else 0."""
    match operator, left, right:
        case "+", Sized(), Sized():
            return len(left) + len(right)
        case "*", Sized(), int():
            return len(left) * abs(right)
        case "*", int(), Sized():
            return len(right) * abs(left)
        case "*", int(), int():
            return 64 * (left.bit_length() + right.bit_length())
        case "**", int(), int():
            return 64 * left.bit_length() * abs(right)
        case _:
            return 0
