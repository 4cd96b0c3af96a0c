"""Chat templates of the kinds that models carry, each with what makes its kind hard."""

from tests.data.small_tokenizers import BRACKETS, CHATML

LLAMA3 = """\
{%- for message in messages -%}
    {%- if loop.first %}{{ bos_token }}{% endif -%}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim -}}
    {%- for call in message['tool_calls'] or [] %}{{ call['function'] | tojson }}{% endfor -%}
    {{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif -%}
"""
"""Llama 3's kind: contents are trimmed, tool calls become JSON."""

GEMMA = """\
{{ bos_token }}
{%- if messages and messages[0]['role'] == 'system' %}{{ raise_exception('no system message here') }}{% endif -%}
{%- for message in messages -%}
    {{- '<start_of_turn>' ~ ('model' if message['role'] == 'assistant' else message['role']) ~ '\n' -}}
    {{- message['content'] | trim ~ '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif -%}
"""
"""Gemma's kind: no system message, contents are trimmed, the assistant has another name."""

MISTRAL = """\
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set system, turns = messages[0]['content'] + '\n\n', messages[1:] -%}
{%- else -%}
    {%- set system, turns = '', messages -%}
{%- endif -%}
{{- bos_token -}}
{%- for turn in turns -%}
    {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('roles must alternate') -}}
    {%- endif -%}
    {%- if turn['role'] == 'user' -%}
        {{- '[INST] ' + (system if loop.first else '') + turn['content'] + ' [/INST]' -}}
    {%- else -%}
        {{- ' ' + turn['content'] | trim + eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""
"""Mistral's older kind: the system message is in the first user's turn, and there is no generation prompt."""

MISTRAL_LAST = MISTRAL.replace("if loop.first else", "if loop.index0 >= turns | length - 2 else")
"""Mistral's later kind, in short: the system message moves into the last user's turn."""

QWEN3 = """\
{%- set last = namespace(user=-1) -%}
{%- for message in messages -%}
    {%- if message.role == 'user' %}{% set last.user = loop.index0 %}{% endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\n' -}}
    {%- if message.role == 'assistant' -%}
        {%- set thought = message.reasoning_content or '' -%}
        {%- set said = message.content -%}
        {%- if '</think>' in said -%}
            {%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') -%}
            {%- set said = said.split('</think>')[-1].lstrip('\n') -%}
        {%- endif -%}
        {%- if loop.index0 > last.user and (loop.last or thought) -%}
            {{- '<think>\n' + thought + '\n</think>\n\n' -}}
        {%- endif -%}
        {{- said -}}
        {%- for call in message.tool_calls or [] -%}
            {{- '\n<tool_call>' + call.function.name + '</tool_call>' -}}
        {%- endfor -%}
    {%- else -%}
        {{- message.content -}}
    {%- endif -%}
    {{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
    {%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif -%}
{%- endif -%}
"""
"""Qwen 3's kind: thoughts of earlier turns are dropped, the last turn always has one, if only an empty one."""

ZEPHYR = """\
{% for message in messages %}
{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""
"""Zephyr's kind: headers are no special tokens, and line breaks are the template's own."""

DEEPSEEK = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\n' + message.content.split('</think>')[-1] + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif -%}
"""
"""DeepSeek R1's kind: the generation prompt begins a thought that no turn of the text has."""

FOREIGN = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "qwen3": QWEN3,
    "zephyr": ZEPHYR,
}
"""Those with golden files."""

ALL = {**FOREIGN, "brackets": BRACKETS, "mistral_last": MISTRAL_LAST, "deepseek": DEEPSEEK}
