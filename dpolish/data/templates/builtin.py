"""The chat templates that come with dpolish: NeMo's chat format with any five tokens, and its `extra_id` form.

    {system_turn_start}System{end_of_name}{system}{end_of_turn}
    {turn_start}User{end_of_name}{value}{end_of_turn}
    {turn_start}Assistant{end_of_name}{value}{end_of_turn}{turn_start}

The header stands there without a system message too. `turn_start` behind the last answer is the stop signal, so it is
trained. A turn with a `type` and a `label` has `{label_start}{label}{end_of_name}`: before the value in VALUE_TO_TEXT
and not trained; behind the turn in TEXT_TO_VALUE, where the value is given and the label alone is trained. So that the
generation prompt ends where the trained part begins, it is rendered with the answer to come as `next_turn`.
"""

from typing import NamedTuple

from dpolish.registry import Registry


class PromptTokens(NamedTuple):
    """The five texts of NeMo's chat format, `model.data.chat_prompt_tokens`."""

    system_turn_start: str = "\x00"
    turn_start: str = "\x11"
    label_start: str = "\x12"
    end_of_turn: str = "\n"
    end_of_name: str = "\n"


_NEMO = """\
{%- set system_turn_start, turn_start, label_start, end_of_turn, end_of_name = TOKENS -%}
{%- set speakers = {'system': 'System', 'user': 'User', 'assistant': 'Assistant'} -%}
{%- if tools -%}
    {{- raise_exception('this template has no place for tools') -}}
{%- endif -%}
{%- set system = messages[0]['content'] if messages and messages[0]['role'] == 'system' else none -%}
{{- system_turn_start ~ 'System' ~ end_of_name ~ (system or '') ~ end_of_turn -}}

{%- for turn in (messages if system is none else messages[1:]) -%}
    {%- set speaker = speakers[turn['role']] if turn['role'] in speakers else turn['role'] -%}
    {%- set label = turn['label'] if 'label' in turn and 'type' in turn else none -%}
    {%- if 'tool_calls' in turn -%}
        {{- raise_exception('this template has no place for tool calls') -}}
    {%- endif -%}
    {{- turn_start ~ speaker ~ end_of_name -}}
    {%- if label is not none and turn['type'] == 'VALUE_TO_TEXT' -%}
        {{- label_start ~ label ~ end_of_name -}}
    {%- endif -%}
    {{- turn['content'] ~ end_of_turn -}}
    {%- if label is not none and turn['type'] == 'TEXT_TO_VALUE' -%}
        {{- label_start ~ label ~ end_of_name -}}
    {%- endif -%}
    {%- if loop.last and turn['role'] == 'assistant' and not add_generation_prompt -%}
        {{- turn_start -}}
    {%- endif -%}
{%- endfor -%}

{%- if add_generation_prompt -%}
    {{- turn_start ~ 'Assistant' ~ end_of_name -}}
    {%- if next_turn and 'label' in next_turn and 'type' in next_turn -%}
        {%- if next_turn['type'] == 'VALUE_TO_TEXT' -%}
            {{- label_start ~ next_turn['label'] ~ end_of_name -}}
        {%- elif next_turn['type'] == 'TEXT_TO_VALUE' -%}
            {{- next_turn['content'] ~ end_of_turn ~ label_start -}}
        {%- endif -%}
    {%- endif -%}
{%- endif -%}
"""


def nemo_template(tokens: PromptTokens) -> str:
    """The Jinja source of NeMo's chat format with these tokens."""
    return _NEMO.replace("TOKENS", ", ".join(map(_literal, tokens)), 1)


def _literal(text: str) -> str:
    """A Jinja string, with everything escaped that is not a plain letter."""
    escaped = (
        letter if letter.isascii() and letter.isprintable() and letter not in "'\\" else f"\\U{ord(letter):08x}"
        for letter in text
    )
    return f"'{''.join(escaped)}'"


EXTRA_ID_TOKENS = PromptTokens("<extra_id_0>", "<extra_id_1>", "<extra_id_2>")

TEMPLATES: Registry[str] = Registry("chat template")
"""Jinja sources by the name that `model.data.chat_template` takes."""
TEMPLATES.register("extra_id")(nemo_template(EXTRA_ID_TOKENS))
TEMPLATES.register("nemo")(nemo_template(PromptTokens()))
