"""What rows are rendered with in a run, and whether that is what the model was fine-tuned with."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dpolish.data.templates.chat import ChatTemplate
from dpolish.data.templates.follow import TemplateMismatch, compare_with_template
from dpolish.data.templates.record import TemplateRecord, describe_difference
from dpolish.records import Conversation, PreferencePair

Rows = Sequence[PreferencePair | Conversation]


@dataclass(frozen=True, slots=True)
class Rendering:
    """The first rows of a run, and what is known of templates."""

    rows: Rows
    """The first training rows."""
    template: ChatTemplate | None
    """What messages are rendered with."""
    prompt_template: str | None
    """What made texts of prompt-response rows (SFT), where the rows are such."""
    trained: TemplateRecord | None
    """What the model's own folder says it was fine-tuned with."""
    own: ChatTemplate | None
    """The chat template that came with the model."""

    @property
    def of_messages(self) -> bool:
        """Whether the rows are messages, which the template renders."""
        return _of_messages(self.rows)

    @property
    def record(self) -> TemplateRecord | None:
        """What to write beside the trained model: texts that were used as they stand keep what is known already."""
        if self.of_messages:
            used = TemplateRecord.of(self.template)
        elif self.prompt_template is not None:
            used = TemplateRecord.of(None, self.prompt_template)
        else:
            return self.trained
        same = self.trained is not None and self.trained.identity == used.identity
        return self.trained if same else used

    def findings(self) -> Iterator[str]:
        """A line, or a few, for each disagreement between the rows and what the model was fine-tuned with."""
        if change := template_change(self.rows, self.template, self.trained):
            yield change
        elif self.of_messages:
            yield from self._other_than_own()
        if self.prompt_template is not None:
            yield from self._other_prompt_template()
        elif self.trained is not None and self.trained.prompt_template is not None:
            yield from self._beside_prompt_template(self.trained.prompt_template)
        elif mismatch := template_mismatch(self.rows, self.own, self.trained):
            yield f"{mismatch}. Texts are used to the letter"

    def _other_than_own(self) -> Iterator[str]:
        """The model says nothing of its fine-tuning, but brings a template: say so where another one is used."""
        if self.trained is None and self.template and self.own and self.template.source != self.own.source:
            yield (
                f"messages are rendered with the template {self.template.name}, not with the one that came with the "
                "model. If the model was fine-tuned with its own, leave model.data.chat_template out"
            )

    def _other_prompt_template(self) -> Iterator[str]:
        """Fine-tuning that goes on in another form."""
        used = TemplateRecord.of(None, self.prompt_template)
        if self.trained is not None and self.trained.identity != used.identity:
            yield describe_difference(used, self.trained, _special_tokens(self.template))

    def _beside_prompt_template(self, template: str) -> Iterator[str]:
        """What stands between a field and the answer must stand in the prompt's end or the answer's beginning."""
        between = re.split(r"\{[^{}]*\}", template)[-2]
        pairs = [row for row in self.rows if isinstance(row, PreferencePair) and isinstance(row.prompt, str)]
        bad = [pair for pair in pairs if between and between not in _seam(pair, len(between))]
        if bad:
            yield (
                f"the model was fine-tuned with prompt_template {template!r}, which has {between!r} in front of the "
                f"answer; {len(bad)} of the first {len(pairs)} rows have not (first: {bad[0].where})"
            )


def template_mismatch(rows: Rows, own: ChatTemplate | None, trained: TemplateRecord | None) -> TemplateMismatch | None:
    """How rows of strings are written otherwise than the model knows: by its fine-tuning's template, if that is known.

    Ends of answers are left aside: they are looked at in every row.
    """
    known = own
    if trained is not None:
        if not trained.source or trained.prompt_template is not None:
            return None
        special = own.special_tokens if own else ()
        known = ChatTemplate(trained.name, trained.source, special_tokens=special, where=trained.name)
    return compare_with_template(rows, replace(known, stop="")) if known is not None else None


def template_change(rows: Rows, template: ChatTemplate | None, trained: TemplateRecord | None) -> str:
    """The warning for rows of messages that another template renders than in the fine-tuning; empty otherwise."""
    used = TemplateRecord.of(template)
    if trained is None or used.identity == trained.identity or not _of_messages(rows):
        return ""
    return describe_difference(used, trained, _special_tokens(template))


def _of_messages(rows: Rows) -> bool:
    first = (row.prompt if isinstance(row, PreferencePair) else row.pieces[0] for row in rows)
    return any(not isinstance(part, str) for part in first)


def _special_tokens(template: ChatTemplate | None) -> Mapping[str, str]:
    return dict(template.special_tokens) if template is not None else {}


def _seam(pair: PreferencePair, width: int) -> str:
    """The text around the border of prompt and chosen answer, `width` characters to both sides."""
    assert isinstance(pair.prompt, str)
    assert isinstance(pair.chosen, str)
    return pair.prompt[-width:] + pair.chosen[:width]
