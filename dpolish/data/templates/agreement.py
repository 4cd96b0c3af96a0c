"""What rows are rendered with in a run, and whether that is what the model was fine-tuned with."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dpolish.data.templates.chat import ChatTemplate
from dpolish.data.templates.follow import compare_with_template
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
    append_eod: bool
    """The end-of-sequence token is put behind answers."""

    @property
    def of_messages(self) -> bool:
        """Whether the rows are messages, which the template renders."""
        return any(not isinstance(_first_part(row), str) for row in self.rows)

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
        used = self.record
        if self.trained is not None and used is not None and used.identity != self.trained.identity:
            special: Mapping[str, str] = dict(self.template.special_tokens) if self.template else {}
            yield describe_difference(used, self.trained, special)
        elif self.of_messages:
            yield from self._other_than_own()
        elif self.prompt_template is None:
            yield from self._strings()

    def _other_than_own(self) -> Iterator[str]:
        """The model says nothing of its fine-tuning, but brings a template: say so where another one is used."""
        if self.trained is None and self.template and self.own and self.template.source != self.own.source:
            yield (
                f"messages are rendered with the template {self.template.name}, not with the one that came with the "
                "model. If the model was fine-tuned with its own, leave model.data.chat_template out"
            )

    def _strings(self) -> Iterator[str]:
        """Texts are used to the letter: they have to be in the model's template already."""
        if self.trained is not None and self.trained.prompt_template is not None:
            yield from self._beside_prompt_template(self.trained.prompt_template)
        elif self.own is not None and (found := compare_with_template(self.rows, self.own, append_eod=self.append_eod)):
            source = "was fine-tuned with" if self.trained is not None and self.trained.source else "came with"
            yield f"{found}. It is the template that the model {source}; texts are used to the letter"

    def _beside_prompt_template(self, template: str) -> Iterator[str]:
        """What stands between a field and the answer must stand in the prompt's end or the answer's beginning."""
        between = re.split(r"\{[^{}]*\}", template)[-2]
        pairs = [row for row in self.rows if isinstance(row, PreferencePair)]
        bad = [pair for pair in pairs if between and between not in _seam(pair, len(between))]
        if bad:
            yield (
                f"the model was fine-tuned with prompt_template {template!r}, which has {between!r} in front of the "
                f"answer; {len(bad)} of the first {len(pairs)} rows have not (first: {bad[0].where})"
            )


def _first_part(row: PreferencePair | Conversation) -> object:
    return row.prompt if isinstance(row, PreferencePair) else row.pieces[0]


def _seam(pair: PreferencePair, width: int) -> str:
    """The text around the border of prompt and chosen answer, `width` characters to both sides."""
    assert isinstance(pair.prompt, str)
    assert isinstance(pair.chosen, str)
    return pair.prompt[-width:] + pair.chosen[:width]
