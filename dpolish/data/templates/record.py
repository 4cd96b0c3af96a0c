"""Which template a model was trained with: written beside its weights, and compared when it is trained further."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dpolish.data.templates.chat import ChatTemplate
from dpolish.errors import DataError, ModelError
from dpolish.files import write_atomically
from dpolish.records import Message

FILE_NAME = "dpolish_template.json"
_FIELDS = ("name", "source", "fingerprint", "prompt_template")
_LARGEST = 1 << 21
_PLACE = re.compile(r"\{([^{}]*)\}")
_PROBE = (
    Message("system", "Be brief."),
    Message("user", "Which year?"),
    Message("assistant", "1215"),
    Message("user", "Where?"),
)


@dataclass(frozen=True, slots=True)
class TemplateRecord:
    """How a model's training texts were put together."""

    name: str
    """Of the chat template: `model`, a built-in name, or the path of a file; empty where there was none."""
    source: str
    """Its Jinja text, empty where there was none."""
    fingerprint: str
    """sha256 of the source, in hexadecimal."""
    prompt_template: str | None = None
    """How fields of prompt-response rows became a text, `{input} {output}`; None where rows were messages or texts."""

    @staticmethod
    def of(template: ChatTemplate | None, prompt_template: str | None = None) -> "TemplateRecord":
        """The one of a run."""
        name, source = (template.name, template.source) if template is not None else ("", "")
        return TemplateRecord(name, source, hashlib.sha256(source.encode()).hexdigest(), prompt_template)

    @property
    def identity(self) -> tuple[str, str | None]:
        """Equal for templates that write the same texts. A name says nothing: a saved model's own was once a file's."""
        return ("", self.prompt_template) if self.prompt_template is not None else (self.fingerprint, None)

    def prompt_before_answer(self, prompt: str) -> str:
        """The text that `prompt_template` puts in front of the answer; ModelError where it has other than one field."""
        assert self.prompt_template is not None
        before, *behind = _PLACE.split(self.prompt_template)
        if len(behind) != 4:
            raise ModelError(
                f"the model's prompt_template is {self.prompt_template!r}: a single prompt fits only a template of one "
                "field and the answer"
            )
        return before + prompt.strip(" ") + behind[1].rstrip(" ")  # an answer brings the blank before its first word


def save_template(folder: Path, record: TemplateRecord) -> None:
    """Write the record into a model folder. Raises RunError."""
    content = {name: getattr(record, name) for name in _FIELDS}
    write_atomically(folder / FILE_NAME, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def load_template(folder: Path) -> TemplateRecord | None:
    """The record of a model folder; None where there is none. Raises ModelError for a file that is no such record."""
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        return _checked(json.loads(_read(path), object_pairs_hook=_without_repeats))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: not a record of the template that the model was trained with: {error or 'too deep'}. "
            "Remove the file if you know the template"
        ) from error


def describe_difference(
    used: TemplateRecord, trained: TemplateRecord, special_tokens: Mapping[str, str] | None = None
) -> str:
    """The warning for a model that was trained with another template: both, and one conversation in both.

    `special_tokens` are what the tokenizer lends to templates, as in `ChatTemplate.special_tokens`.
    """
    special = tuple((special_tokens or {}).items())
    return "\n".join(
        [
            "THE TEMPLATE IS NOT THE ONE THAT THE MODEL WAS FINE-TUNED WITH. What comes out is often garbage.",
            f"  fine-tuned with  {_called(trained)}",
            f"  now              {_called(used)}",
            "  The same conversation in both:",
            f"    then  {_example(trained, special)}",
            f"    now   {_example(used, special)}",
            "  Set model.data.chat_template (or write the prompts) as in the fine-tuning, unless the change is meant.",
        ]
    )


def _called(record: TemplateRecord) -> str:
    if record.prompt_template is not None:
        return f"prompt_template {record.prompt_template!r}"
    if not record.source:
        return "no template: texts as they stand in the rows"
    return f"{record.name}, sha256 {record.fingerprint[:12]}"


def _example(record: TemplateRecord, special: tuple[tuple[str, str], ...]) -> str:
    """The probe conversation, on one line."""
    if record.prompt_template is not None:
        return repr(record.prompt_template)
    if not record.source:
        return "as the row has it"
    template = ChatTemplate(record.name, record.source, special_tokens=special, where=record.name)
    for messages in (_PROBE, _PROBE[1:]):  # some refuse a system message
        try:
            return repr(template.render(messages, generate=True))
        except DataError as error:
            refusal = str(error)
        except ModelError as error:
            return f"cannot be shown: {error}"
    return f"cannot be shown: {refusal}"


def _read(path: Path) -> str:
    if not path.is_file() or path.stat().st_size > _LARGEST:
        raise ValueError(f"not a file of at most {_LARGEST:,} bytes")
    return path.read_bytes().decode()


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field stands in it twice")
    return found


def _checked(content: object) -> TemplateRecord:
    if not isinstance(content, dict) or content.keys() != set(_FIELDS):
        raise ValueError(f"expected an object with {', '.join(_FIELDS)}")
    for name in _FIELDS:
        if not isinstance(content[name], str) and (name != "prompt_template" or content[name] is not None):
            raise ValueError(f"{name} is not a string")
    record = TemplateRecord(**content)
    if hashlib.sha256(record.source.encode()).hexdigest() != record.fingerprint:
        raise ValueError("the fingerprint is not that of the source: the file was changed")
    return record
