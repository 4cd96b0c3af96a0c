"""A chat template: messages to text, exactly as `apply_chat_template` renders them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from dpolish.data.templates.builtin import TEMPLATES, PromptTokens, nemo_template
from dpolish.data.templates.sandbox import TemplateOverrun, compiled
from dpolish.errors import ConfigError, DataError, ModelError
from dpolish.records import NO_ARGUMENTS, Message, TemplateArguments

MODEL = "model"
"""Name of the template that a tokenizer carries."""
_FILES = (".jinja", ".jinja2", ".j2")
_LARGEST_FILE = 1 << 20
_OURS = ("messages", "tools", "add_generation_prompt", "next_turn", "chat_template", "continue_final_message")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """How messages become text."""

    name: str
    """`model`, a built-in name, or the path of a file."""
    source: str
    """Jinja."""
    stop: str = ""
    """What ends a turn of the assistant, blanks behind it left off; empty where blanks alone do."""
    tool_source: str = ""
    """Jinja for rows with tools, where the tokenizer has another template for these."""
    special_tokens: tuple[tuple[str, str], ...] = ()
    """Names such as `bos_token` that the tokenizer lends to its templates, with their texts."""
    where: str = ""
    """Model or file, for messages."""

    @property
    def fingerprint(self) -> str:
        """sha256 of the source, in hexadecimal."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def render(
        self,
        messages: Sequence[Message],
        arguments: TemplateArguments = NO_ARGUMENTS,
        *,
        generate: bool,
        next_turn: Message | None = None,
    ) -> str:
        """The text of the messages; with `generate`, up to where the assistant begins to speak.

        `next_turn` is the answer that begins there, for templates that put its label into the prompt. Raises
        DataError, without a place, when the template refuses the messages, and ModelError when it is of no use.
        """
        variables: dict[str, object] = dict(self.special_tokens)
        source = self.source
        if arguments is not NO_ARGUMENTS:
            variables |= _extra_variables(arguments)
            source = self.tool_source if arguments.tools and self.tool_source else source
        variables["messages"] = [_turn(message) for message in messages]
        variables["add_generation_prompt"] = generate
        if next_turn is not None:
            variables["next_turn"] = _turn(next_turn)
        try:
            return compiled(source)({"tools": None, "documents": None, **variables})
        except TemplateSyntaxError as error:
            raise ModelError(f"{self.where}: the chat template has an error: line {error.lineno}: {error}") from error
        except (TemplateOverrun, MemoryError) as error:
            raise ModelError(f"{self.where}: the chat template cannot be used: {error or 'no memory'}") from error
        except _REFUSALS as error:
            roles = ", ".join(message.role for message in messages)
            raise DataError(f"the chat template refuses these messages ({roles}): {error}") from error


def choose_template(
    tokenizer: PreTrainedTokenizerBase, asked: str | None = None, tokens: Sequence[str] | None = None
) -> ChatTemplate | None:
    """The template that is asked for, else the tokenizer's own; None where it has none to use.

    `asked` is a built-in name or the path of a Jinja file; `tokens` mean the nemo template with these five. ConfigError
    for what was asked for and cannot be used; the tokenizer's own template is judged when a row needs it.
    """
    special = tuple((name, str(text)) for name, text in tokenizer.special_tokens_map.items())
    if asked is None and tokens is None:
        own = tokenizer.chat_template
        named: Mapping[str, str] = own if isinstance(own, dict) else {"default": own or ""}
        if not named.get("default"):
            return None
        where = str(tokenizer.name_or_path)
        template = ChatTemplate(MODEL, named["default"], "", named.get("tool_use", ""), special, where)
        try:
            return replace(template, stop=turn_end(template).rstrip())
        except ModelError:
            return template
    template = replace(_asked(asked, tokens), special_tokens=special)
    try:
        return replace(template, stop=turn_end(template).rstrip())
    except ModelError as error:
        raise ConfigError(f"model.data.chat_template={asked}: {error}") from error


def require_chat_template(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None) -> ChatTemplate:
    """The template, or a ModelError that says what to do without one."""
    if template is not None:
        return template
    own = tokenizer.chat_template
    if isinstance(own, dict) and own:
        raise ModelError(
            f"{tokenizer.name_or_path}: the tokenizer has the chat templates {', '.join(own)}, and none is the default "
            "one: put the one to use into chat_template.jinja in the model folder, or name its file in "
            "model.data.chat_template."
        )
    raise ModelError(
        f"{tokenizer.name_or_path}: the tokenizer has no chat template, which rows made of messages need.\n"
        "  Use an instruction-tuned model, put chat_template.jinja into the model folder, choose one with "
        "model.data.chat_template=extra_id (or nemo, or the path of a .jinja file), or write prompts and answers as "
        "strings in the template of the fine-tuning."
    )


_PROBE = "The answer is 1215"
_PROBES = (
    (Message("user", "Which year?"), Message("assistant", _PROBE)),
    (Message("system", "Be kind."), Message("user", "Which year?"), Message("assistant", _PROBE)),
)


def turn_end(template: ChatTemplate) -> str:
    """What a template writes behind the content of a last answer; empty where it renders no simple conversation."""
    for messages in _PROBES:
        try:
            _, found, end = template.render(messages, generate=False).rpartition(_PROBE)
        except DataError:
            continue
        if found:
            return end
    return ""


def _asked(asked: str | None, tokens: Sequence[str] | None) -> ChatTemplate:
    if tokens is not None:
        if asked not in (None, "nemo"):
            raise ConfigError(
                f"model.data.chat_template={asked} and model.data.chat_prompt_tokens are both given: the five tokens "
                "belong to the template nemo. Leave one of the two out"
            )
        return ChatTemplate("nemo", nemo_template(PromptTokens(*tokens)), where="nemo")
    assert asked is not None
    if asked in TEMPLATES or not (asked.endswith(_FILES) or Path(asked).is_file()):
        return ChatTemplate(asked, TEMPLATES[asked], where=asked)
    return ChatTemplate(asked, _read(Path(asked)), where=asked)


def _read(path: Path) -> str:
    key = f"model.data.chat_template={path}"
    if not path.exists():
        raise ConfigError(f"{key}: there is no such file. Give the path of a Jinja file, or extra_id or nemo")
    if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
        raise ConfigError(f"{key}: not a file of at most {_LARGEST_FILE:,} bytes")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: cannot be read: {error}") from error


def _turn(message: Message) -> dict[str, object]:
    """A message as templates know it: nothing where a field is null, the reasoning under all its names."""
    if not message.more:
        return {"role": message.role, "content": message.content}
    more = {"role": message.role, "content": message.content, **json.loads(message.more)}
    fields = {name: value for name, value in more.items() if value is not None}
    reasoning = next((fields[name] for name in _REASONING if name in fields), None)
    return fields if reasoning is None else {"thinking": reasoning, **fields, "reasoning_content": reasoning}


def _extra_variables(arguments: TemplateArguments) -> dict[str, object]:
    variables: dict[str, object] = json.loads(arguments.kwargs) if arguments.kwargs else {}
    for name in _OURS:
        if name in variables:
            raise DataError(f"chat_template_kwargs has {name!r}, which is not a variable of the template: remove it")
    return {**variables, "tools": json.loads(arguments.tools)} if arguments.tools else variables
