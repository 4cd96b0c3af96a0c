"""What `model.data` holds in every tree: the chat format, and how rows become micro-batches."""

from dataclasses import dataclass, field

from dpolish.config.checks import below, empty, refuse
from dpolish.config.schema.metadata import IDLE_WORKERS
from dpolish.config.schema.names import CHAT_TEMPLATES, OnOverlong
from dpolish.registry import did_you_mean

NEMO_TOKENS = ("\x00", "\x11", "\x12", "\n", "\n")
"""The tokens of NeMo-Aligner's gpt_sft.yaml, in the order of `ChatPromptTokens`."""

_ESCAPES = {"escapes": True}


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatPromptTokens:
    """The five tokens of NeMo-Aligner's chat format, for chat_template=nemo, which one that is given implies."""

    system_turn_start: str | None = field(default=None, metadata=_ESCAPES)
    """Before the system message; null is NeMo's `\\x00`."""
    turn_start: str | None = field(default=None, metadata=_ESCAPES)
    """Before every other turn; null is NeMo's `\\x11`."""
    label_start: str | None = field(default=None, metadata=_ESCAPES)
    """Before a turn's label; null is NeMo's `\\x12`."""
    end_of_turn: str | None = field(default=None, metadata=_ESCAPES)
    """Behind every turn; null is NeMo's line break."""
    end_of_name: str | None = field(default=None, metadata=_ESCAPES)
    """Behind a speaker's name; null is NeMo's line break."""

    def __post_init__(self) -> None:
        refuse(end_of_turn=self.end_of_turn == "" and "is empty, so that no turn would end")

    @property
    def chosen(self) -> tuple[str, str, str, str, str] | None:
        """The five tokens, NeMo's own where none is given; None where none at all is given."""
        given = (self.system_turn_start, self.turn_start, self.label_start, self.end_of_turn, self.end_of_name)
        if all(token is None for token in given):
            return None
        first, turn, label, turn_end, name_end = (
            usual if token is None else token for token, usual in zip(given, NEMO_TOKENS, strict=True)
        )
        return first, turn, label, turn_end, name_end


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What `model.data` holds whatever is trained; each tree adds its files and its fields."""

    format: str | None = None
    """Name of the row format; null recognises it."""
    on_overlong: OnOverlong = "drop"
    """What to do with a row that is longer than the sequence length."""
    packing: bool = True
    """Pack rows without padding, a shared prompt once; false pads micro_batch_size rows."""
    tokens_per_micro_batch: int | None = None
    """Token budget of a packed micro-batch; null derives it, `dpolish plan` prints it."""
    num_workers: int = field(default=0, metadata=IDLE_WORKERS)
    """Processes that prepare rows."""
    chat_template: str | None = None
    """Renders message lists: null is the model's own, else extra_id, nemo, or the path of a .jinja file."""
    chat_prompt_tokens: ChatPromptTokens = field(default_factory=ChatPromptTokens)

    @property
    def prompt_tokens(self) -> tuple[str, str, str, str, str] | None:
        """The tokens of NeMo's chat format, in the order of chat_prompt_tokens; None where none of them is given."""
        return self.chat_prompt_tokens.chosen


def data_faults(data: DataConfig) -> dict[str, bool | str]:
    """What is wrong with the fields that every `model.data` has, for `refuse`."""
    return {
        "tokens_per_micro_batch": below(1, data.tokens_per_micro_batch),
        "num_workers": below(0, data.num_workers),
        "chat_template": empty(data.chat_template)
        or _bad_template(data.chat_template)
        or (
            data.prompt_tokens is not None
            and data.chat_template not in (None, "nemo")
            and f"{data.chat_template} has no use for chat_prompt_tokens, which are given: set them to null, "
            "or chat_template to nemo"
        ),
    }


def _bad_template(name: str | None) -> bool | str:
    known = name is None or name in CHAT_TEMPLATES or name.endswith(".jinja")
    return not known and (
        f"unknown template {name!r}.{did_you_mean(str(name), CHAT_TEMPLATES)} "
        f"Known: {', '.join(CHAT_TEMPLATES)}, the path of a .jinja file, or null for the model's own"
    )
