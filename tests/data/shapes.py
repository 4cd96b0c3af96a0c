"""Golden rows of every shape: tests/golden/formats/<kind>/<name>.jsonl, and beside each what its rows say."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from dpolish.data.formats import FORMATS, SFT_FORMATS, ConversationFile, PairFile, Skipped
from dpolish.data.read import Fault
from dpolish.errors import DataError
from dpolish.records import Conversation, Message, PreferencePair, TemplateArguments

GOLDEN = Path(__file__).parents[1] / "golden" / "formats"
REGISTRIES = {"preference": FORMATS, "sft": SFT_FORMATS}
SHAPES = [(kind, name) for kind, registry in REGISTRIES.items() for name in registry]
OPEN: dict[str, Callable[[str], PairFile | ConversationFile]] = {"preference": PairFile, "sft": ConversationFile}

Item = PreferencePair | Conversation | Skipped | Fault | DataError


def rows_of(kind: str, name: str) -> list[dict[str, object]]:
    """The golden rows of a shape."""
    lines = (GOLDEN / kind / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def golden_path(kind: str, name: str) -> str:
    """The file of a shape's golden rows."""
    return str(GOLDEN / kind / f"{name}.jsonl")


def expected(kind: str, name: str) -> Iterator[PreferencePair | Conversation | Skipped]:
    """What the golden rows of a shape say, in order."""
    path = golden_path(kind, name)
    for item in json.loads((GOLDEN / kind / f"{name}.json").read_text(encoding="utf-8")):
        where = f"{path}:{item['line']}"
        arguments = TemplateArguments(item.get("tools", ""), item.get("kwargs", ""))
        if "skipped" in item:
            yield Skipped(where, item["skipped"])
        elif kind == "sft":
            pieces = tuple(piece if isinstance(piece, str) else Message(*piece) for piece in item["pieces"])
            yield Conversation(pieces, tuple(item["trained"]), where, arguments)
        else:
            sides = (part(item[side]) for side in ("prompt", "chosen", "rejected"))
            yield PreferencePair(*sides, *item.get("rewards", (None, None)), where, arguments)


def part(value: str | list[list[str]]) -> str | tuple[Message, ...]:
    """A prompt or an answer out of its golden form."""
    return value if isinstance(value, str) else tuple(Message(*message) for message in value)


def write(folder: Path, *values: object, name: str = "rows.jsonl") -> str:
    """A file of these rows."""
    path = folder / name
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return str(path)
