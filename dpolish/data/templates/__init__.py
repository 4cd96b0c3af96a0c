"""Chat templates: which one, messages to text, where the assistant's turns lie, and whether it is the right one."""

from dpolish.data.templates.builtin import TEMPLATES, PromptTokens
from dpolish.data.templates.chat import ChatTemplate, choose_template, require_chat_template
from dpolish.data.templates.follow import TemplateMismatch, compare_with_template
from dpolish.data.templates.record import TemplateRecord, describe_difference, load_template, save_template
from dpolish.data.templates.special import SpecialTokens
from dpolish.data.templates.turns import Rendered, render_turns

__all__ = [
    "TEMPLATES",
    "ChatTemplate",
    "PromptTokens",
    "Rendered",
    "SpecialTokens",
    "TemplateMismatch",
    "TemplateRecord",
    "choose_template",
    "compare_with_template",
    "describe_difference",
    "load_template",
    "render_turns",
    "require_chat_template",
    "save_template",
]
