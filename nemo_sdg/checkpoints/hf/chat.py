"""The prompt formats of `models.templates` as chat templates, for `apply_chat_template`.

Instruct: the prompt with `add_generation_prompt`; without it the conversation and the `<extra_id_1>` that ends its
last turn, which is the training text, and which every continuation begins with. Reward: the text that is scored,
under the fixed system text. Both refuse what `check_messages` refuses.
"""

from __future__ import annotations

import json

from nemo_sdg.models.templates import LABEL, REWARD_SYSTEM_PROMPT, ROLES, SYSTEM, TURN

# `text` is a macro, as a marker can stand anywhere: after each `<extra_id_`, digits and `>` make one.
_HEAD = """\
{%- macro text(content, what, may_be_empty) -%}
    {%- if content is not string or not (may_be_empty or content | trim) -%}
        {{- raise_exception(what ~ ' has no text') -}}
    {%- endif -%}
    {%- for rest in content.split('<extra_id_')[1:] -%}
        {%- if '>' in rest and rest.split('>')[0].isdecimal() -%}
            {{- raise_exception(what ~ ' holds a marker of the prompt format') -}}
        {%- endif -%}
    {%- endfor -%}
    {{- content -}}
{%- endmacro -%}
{%- if tools is defined and tools -%}
    {{- raise_exception('the prompt format has no tools') -}}
{%- endif -%}
{%- set ns = namespace(turns=messages, system='') -%}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set ns.turns = messages[1:] -%}
    {%- set ns.system = text(messages[0]['content'], 'the system message', true) -%}
{%- endif -%}
{%- if not ns.turns -%}
    {{- raise_exception('the conversation has no turns') -}}
{%- endif -%}
{{- SYSTEM ~ 'System\\n' ~ SYSTEM_TEXT ~ '\\n' -}}
{%- for turn in ns.turns -%}
    {%- if turn['role'] != ('assistant' if loop.index0 % 2 else 'user') -%}
        {{- raise_exception('user and assistant take turns, a system message may stand first') -}}
    {%- endif -%}
    {{- TURN ~ ('ASSISTANT' if loop.index0 % 2 else 'USER') ~ '\\n' -}}
    {{- text(turn['content'], 'turn ' ~ loop.index0, false) ~ '\\n' -}}
{%- endfor -%}
"""
_INSTRUCT = """\
{%- if add_generation_prompt is defined and add_generation_prompt -%}
    {%- if ns.turns | length % 2 == 0 -%}
        {{- raise_exception('the user must speak last') -}}
    {%- endif -%}
    {{- TURN ~ 'ASSISTANT\\n' -}}
{%- else -%}
    {{- TURN -}}
{%- endif -%}
"""
_REWARD = """\
{%- if ns.turns | length % 2 -%}
    {{- raise_exception('the assistant must speak last') -}}
{%- endif -%}
{{- LABEL -}}
"""


def chat_template(*, reward: bool) -> str:
    """The jinja source that transformers, vLLM and TensorRT-LLM render."""
    template = _HEAD + (_REWARD if reward else _INSTRUCT)
    template = template.replace("SYSTEM_TEXT", json.dumps(REWARD_SYSTEM_PROMPT) if reward else "ns.system")
    for name, marker in (("SYSTEM", SYSTEM), ("TURN", TURN), ("LABEL", LABEL)):
        template = template.replace(f"{{{{- {name} ", f"{{{{- '{marker}' ")
    for role, name in ROLES.items():
        template = template.replace(f"'{role.upper()}", f"'{name}")
    return template
