"""Read a pickle as data: a machine that knows its storage instructions and calls nothing.

A pickle is a program. Python's own unpickler imports what the program names and calls it; this one knows only the
instructions that lay out numbers, text, lists and mappings. A name becomes a `Global` if it is on the caller's list,
and a call becomes a `Record` that says what would have been called, with what. Every instruction that keeps something
is charged against a budget, so that a small file cannot ask for much memory.
"""

import pickletools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from dpolish.errors import ModelError

MAX_COST = 40 << 20
"""Bytes that the values of one pickle may take, as `_COST` counts them: enough for 15,000 pieces of a checkpoint."""


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """The name of something in a Python module. It is never looked up."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class PersistentId:
    """A reference to what is stored outside of the pickle: in torch's files, the bytes of a tensor."""

    value: "Value"


@dataclass(slots=True, eq=False)
class Record:
    """What would have been the result of calling `name` with `arguments`, and what was then put into it."""

    name: str
    arguments: tuple["Value", ...]
    state: "Value" = None
    items: "dict[Key, Value] | None" = None


Key: TypeAlias = str | int | Record
Value: TypeAlias = (
    bool | int | float | str | bytes | Global | PersistentId | Record
    | tuple["Value", ...] | list["Value"] | dict[Key, "Value"] | None
)  # fmt: skip

_MARK: PersistentId = PersistentId(None)
"""What the machine puts on its stack where a list of arguments begins, and into the gaps of its memo."""

_PLAIN = frozenset(
    [
        "BININT", "BININT1", "BININT2", "LONG1", "INT", "LONG", "BINFLOAT", "FLOAT", "BINSTRING", "SHORT_BINSTRING",
        "STRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE",
    ]
)  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_GET = frozenset(["GET", "BINGET", "LONG_BINGET"])
_PUT = frozenset(["PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"])
_COST = {
    "EMPTY_LIST": 100, "LIST": 100, "EMPTY_DICT": 90, "DICT": 90, "TUPLE1": 72, "TUPLE2": 80, "TUPLE3": 88,
    "TUPLE": 72, "REDUCE": 80, "NEWOBJ": 80, "GLOBAL": 80, "STACK_GLOBAL": 80, "BINPERSID": 56,
}  # fmt: skip
"""Bytes, roughly, that an instruction keeps besides its text."""


def read_pickle(data: bytes, allowed: Callable[[str], bool], where: str) -> Value:
    """The value that the pickle `data` describes, naming only what is `allowed`. Raises ModelError."""
    machine = _Machine(allowed, where)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise ModelError(f"{where}: is damaged: {type(error).__name__} while its list of contents was read") from error
    return machine.result()


class _Machine:
    """The stack and the memo of a pickle, and the instructions that change them."""

    def __init__(self, allowed: Callable[[str], bool], where: str) -> None:
        self.allowed, self.where = allowed, where
        self.stack: list[Value] = []
        self.memo: list[Value] = []
        self.cost = 0
        self.globals: dict[str, Global] = {}
        self.stopped = False

    def result(self) -> Value:
        if not self.stopped or len(self.stack) != 1:
            raise ModelError(f"{self.where}: is damaged: its list of contents does not come to an end")
        return self.stack[0]

    def step(self, name: str, argument: object) -> None:
        """Do one instruction. Raises the errors of lists and mappings for a program that makes no sense."""
        self._charge(_COST.get(name, 10))
        if name in _PLAIN:
            assert isinstance(argument, int | float | str | bytes)
            self._charge(sys.getsizeof(argument) + 8)
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _GET:
            self.stack.append(self._kept(argument))
        elif name in _PUT:
            self._keep(len(self.memo) if name == "MEMOIZE" else argument)
        elif name == "STOP":
            self.stopped = True
        elif name not in ("PROTO", "FRAME"):
            instruction = _INSTRUCTIONS.get(name)
            if instruction is None:
                raise ModelError(f"{self.where}: is no list of tensors: its pickle uses {name}")
            instruction(self, argument)

    def _charge(self, cost: int) -> None:
        self.cost += cost
        if self.cost > MAX_COST:
            raise ModelError(f"{self.where}: lists more than {MAX_COST >> 20} MiB of names and shapes")

    def _keep(self, index: object) -> None:
        """Put the top of the stack into the memo. Writers count from 0; a gap costs as much as what it could hold."""
        if not isinstance(index, int) or index < 0:
            raise ValueError("no index")
        if (missing := index + 1 - len(self.memo)) > 0:
            self._charge(10 * missing)
            self.memo.extend([_MARK] * missing)
        self.memo[index] = self.stack[-1]

    def _kept(self, index: object) -> Value:
        if not isinstance(index, int) or index < 0 or self.memo[index] is _MARK:
            raise ValueError("nothing was kept there")
        return self.memo[index]

    def refuse(self, what: str) -> NoReturn:
        raise ModelError(f"{self.where}: {what}. It holds more than tensors, and nothing in it is run.")

    def pop(self) -> Value:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value is due")
        return value

    def pop_to_mark(self) -> list[Value]:
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                values = self.stack[at + 1 :]
                del self.stack[at:]
                return values
        raise ValueError("no mark")

    def named(self, name: str) -> None:
        if not self.allowed(name):
            self.refuse(f"its pickle asks for {name[:100]!a}")
        self.stack.append(self.globals.setdefault(name, Global(name)))

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            self.refuse("its pickle calls something without a name")
        self.stack.append(Record(function.name, arguments))

    def set_items(self, pairs: list[Value]) -> None:
        target = self.stack[-1]
        if isinstance(target, Record) and target.items is None:
            target.items = {}
        items = target.items if isinstance(target, Record) else target
        if not isinstance(items, dict) or len(pairs) % 2:
            raise ValueError("items for what has none")
        self._charge(60 * (len(pairs) // 2))
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int | Record):
                self.refuse("its pickle has a mapping with keys that are no names")
            items[key] = value

    def append(self, values: list[Value]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError("items for what is no list")  # noqa: TRY004 (the file's fault, told as such above)
        self._charge(8 * len(values))
        target.extend(values)

    def build(self) -> None:
        state, target = self.pop(), self.stack[-1]
        if not isinstance(target, Record):
            self.refuse("its pickle sets the state of what has none")
        target.state = state


def _begin(machine: _Machine, _: object) -> None:
    machine.stack.append(_MARK)


def _global(machine: _Machine, argument: object) -> None:
    machine.named(str(argument).replace(" ", ".", 1))


def _stack_global(machine: _Machine, _: object) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        machine.refuse("its pickle asks for something without a name")
    machine.named(f"{module}.{name}")


def _tuple_of(count: int) -> Callable[[_Machine, object], None]:
    def make(machine: _Machine, _: object) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(values)))

    return make


def _tuple(machine: _Machine, _: object) -> None:
    values = machine.pop_to_mark()
    machine._charge(8 * len(values))
    machine.stack.append(tuple(values))


def _empty_list(machine: _Machine, _: object) -> None:
    machine.stack.append([])


def _list(machine: _Machine, _: object) -> None:
    machine.stack.append(machine.pop_to_mark())


def _empty_dict(machine: _Machine, _: object) -> None:
    machine.stack.append({})


def _dict(machine: _Machine, _: object) -> None:
    pairs = machine.pop_to_mark()
    machine.stack.append({})
    machine.set_items(pairs)


def _set_item(machine: _Machine, _: object) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _set_items(machine: _Machine, _: object) -> None:
    machine.set_items(machine.pop_to_mark())


def _append(machine: _Machine, _: object) -> None:
    machine.append([machine.pop()])


def _appends(machine: _Machine, _: object) -> None:
    machine.append(machine.pop_to_mark())


def _call(machine: _Machine, _: object) -> None:
    machine.call()


def _build(machine: _Machine, _: object) -> None:
    machine.build()


def _persistent(machine: _Machine, _: object) -> None:
    machine.stack.append(PersistentId(machine.pop()))


_INSTRUCTIONS: dict[str, Callable[[_Machine, object], None]] = {
    "MARK": _begin, "GLOBAL": _global, "STACK_GLOBAL": _stack_global, "EMPTY_TUPLE": _tuple_of(0),
    "TUPLE1": _tuple_of(1), "TUPLE2": _tuple_of(2), "TUPLE3": _tuple_of(3), "TUPLE": _tuple, "EMPTY_LIST": _empty_list,
    "LIST": _list, "EMPTY_DICT": _empty_dict, "DICT": _dict, "SETITEM": _set_item, "SETITEMS": _set_items,
    "APPEND": _append, "APPENDS": _appends, "REDUCE": _call, "NEWOBJ": _call, "BUILD": _build,
    "BINPERSID": _persistent,
}  # fmt: skip
