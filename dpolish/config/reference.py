"""The page of all keys, made from the schema: `python -m dpolish.config.reference > docs/configuration.md`."""

import json
import sys
from collections.abc import Iterable

from dpolish.config.keys import Key, all_keys, all_sections, help_texts
from dpolish.config.nemo_keys import ALIASES, IGNORED, RENAMED
from dpolish.config.typed import describe

_INTRODUCTION = """\
# Configuration

<!-- Made from dpolish/config/schema.py: `python -m dpolish.config.reference > docs/configuration.md` -->

`dpolish dpo` and `dpolish plan` take a YAML file with `--config`, any number of overrides, and four short flags. The
names are NeMo-Aligner's; its `gpt_dpo.yaml` is read as it is. Values are laid over each other in this order: defaults,
file, overrides from left to right, flags. `dpolish dpo --cfg job` prints the result.

| flag | key |
|---|---|
| `--model PATH` | `pretrained_checkpoint.restore_from_path` |
| `--train FILE`, may be repeated | `model.data.data_prefix.train` |
| `--validation FILE`, may be repeated | `model.data.data_prefix.validation` |
| `--output DIR` | `exp_manager.explicit_log_dir` |

Overrides have Hydra's grammar:

| override | meaning |
|---|---|
| `model.optim.lr=1e-6` | change a value |
| `+model.encoder_seq_length=2048` | add a key that `gpt_dpo.yaml` does not list; an error where it exists |
| `++model.seed=7` | add or change |
| `~model.optim.sched.warmup_steps` | take a key away: it is null then |
| `model.data.data_prefix={train: [a.jsonl], validation: [b.jsonl]}` | a mapping with lists |
| `model.data.data_prefix={train: [0.3, a.jsonl, 0.7, b.jsonl]}` | weights and paths in turn |
| `exp_manager.name=` | an empty text |
| `"exp_manager.name='a=b'"` | quotes for a text that holds `=` or `,` |
| `model.optim.sched.min_lr=${model.optim.lr}` | the value of another key |

A key that does not exist is an error, also with `++`. Types are strict: `1` counts and `1.0` is a share, a text is not
a number. Every fault is reported in one go, with the line of the file or the override that it stands in. A value whose
machinery comes with a later version, such as more than one device, is refused with what to do instead.

These variables of the environment count too:

| variable | meaning |
|---|---|
| `NVTE_ALLOW_NONDETERMINISTIC_ALGO=0` | `trainer.deterministic=true`, where that is null |
| `NVTE_FLASH_ATTN=0` | `model.attention_backend=auto` does not choose `segments` |
| `NVTE_FUSED_ATTN=0` | `model.attention_backend=auto` does not choose `flex` |
| `HYDRA_FULL_ERROR=1` | an error comes with its traceback |
"""

_IGNORED = """\
## Keys without a meaning here

They are accepted, and every run prints and saves which of them it was given.
"""

_OTHER_NAMES = "## Other names\n"


def page() -> str:
    """The page, as Markdown."""
    sections = [_section(name, section) for name, section in all_sections().items()]
    ignored = _table(("key", "why"), ((f"`{key}`", why) for key, why in IGNORED.items()))
    names = [(f"`{alias}`", f"the same as `{key}`") for alias, key in ALIASES.items()]
    names += [(f"`{name}`", f"refused: {why}") for name, why in RENAMED.items()]
    parts = [_INTRODUCTION, *filter(None, sections), _IGNORED, ignored, _OTHER_NAMES, _table(("key", "meaning"), names)]
    return "\n".join(parts)


def _section(name: str, section: type) -> str:
    keys = [key for key in all_keys().values() if key.name.rpartition(".")[0] == name]
    rows = ((f"`{key.name.rpartition('.')[2]}`", _values(key), f"`{_default(key)}`", _meaning(key)) for key in keys)
    table = _table(("key", "value", "default", "meaning"), rows)
    return f"## `{name}`\n\n{section.__doc__}\n\n{table}" if keys else ""


def _values(key: Key) -> str:
    return describe(key.annotation).replace(" or null", ", null")


def _default(key: Key) -> str:
    default = key.default
    return default if isinstance(default, str) and key.followed else json.dumps(default, ensure_ascii=True)


def _meaning(key: Key) -> str:
    idle = key.metadata.get("idle")
    return help_texts()[key.name] + (f" No effect in this version: {idle}." if idle else "")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = (head, ("---",) * len(head), *rows)
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(page())
