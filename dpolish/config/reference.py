"""The page of all keys, made from the schema: `python -m dpolish.config.reference > docs/configuration.md`."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping

from dpolish.config.keys import Key, all_keys, all_sections, help_texts
from dpolish.config.schema import ROOTS
from dpolish.config.trees import tree_of
from dpolish.config.typed import describe

_INTRODUCTION = """\
# Configuration

<!-- Made from dpolish/config/schema/: `python -m dpolish.config.reference > docs/configuration.md` -->

`dpolish dpo`, `dpolish sft` and `dpolish plan` take a YAML file with `--config`, any number of overrides, and four
short flags. The names are NeMo-Aligner's; its `gpt_dpo.yaml` and `gpt_sft.yaml` are read as they are. Values are laid
over each other in this order: defaults, file, overrides from left to right, flags. `--cfg job` prints the result.

| flag | key of `dpo` | key of `sft` |
|---|---|---|
| `--model PATH` | `pretrained_checkpoint.restore_from_path` | `model.restore_from_path` |
| `--train FILE`, may be repeated | `model.data.data_prefix.train` | `model.data.train_ds.file_path` |
| `--validation FILE`, may be repeated | `model.data.data_prefix.validation` | `model.data.validation_ds.file_path` |
| `--output DIR` | `exp_manager.explicit_log_dir` | `exp_manager.explicit_log_dir` |

Overrides have Hydra's grammar:

| override | meaning |
|---|---|
| `model.optim.lr=1e-6` | change a value |
| `+model.optim.eps=1e-6` | add a key that NeMo-Aligner's file does not list; an error where it does |
| `++model.seed=7` | add or change |
| `~model.optim.sched.warmup_steps` | take a key away: it is null then |
| `model.data.data_prefix={train: [a.jsonl], validation: [b.jsonl]}` | a mapping with lists |
| `model.data.data_prefix={train: [0.3, a.jsonl, 0.7, b.jsonl]}` | weights and paths in turn |
| `exp_manager.wandb_logger_kwargs.name=` | an empty text |
| `"exp_manager.name='a=b'"` | quotes for a text that holds `=` or `,` |
| `"model.data.chat_prompt_tokens.turn_start='<extra_id_1>'"` | quotes for a text with signs that the grammar lacks |
| `model.optim.sched.min_lr=${model.optim.lr}` | the value of another key |

A key that does not exist is an error, also with `++`. Types are strict: `1` counts and `1.0` is a share, a text is not
a number. Every fault is reported in one go, with the line of the file or the override that it stands in. A value whose
machinery comes with a later version, such as LoRA, is refused with what to do instead.

These variables of the environment count too:

| variable | meaning |
|---|---|
| `NVTE_ALLOW_NONDETERMINISTIC_ALGO=0` | `trainer.deterministic=true`, where that is null |
| `NVTE_FLASH_ATTN=0` | `model.attention_backend=auto` does not choose `segments` |
| `NVTE_FUSED_ATTN=0` | `model.attention_backend=auto` does not choose `flex` |
| `HYDRA_FULL_ERROR=1` | an error comes with its traceback |
"""

_KEYS = """\
## Keys

Both verbs have a key or a section, unless it is marked.
"""

_IGNORED = """\
## Keys without a meaning here

They are accepted, and every run prints and saves which of them it was given.
"""

_OTHER_NAMES = "## Other names\n"


def page() -> str:
    """The page, as Markdown."""
    names = dict.fromkeys(name for root in ROOTS.values() for name in all_sections(root))
    tops = [name for name in names if "." not in name]
    sections = sorted(names, key=lambda name: tops.index(name.partition(".")[0]))
    ignored = _by_verb({verb: tree_of(root).nemo.ignored for verb, root in ROOTS.items()})
    other = {
        verb: {
            **{f"{alias}": f"the same as `{key}`" for alias, key in tree_of(root).nemo.aliases.items()},
            **{name: f"refused: {why}" for name, why in tree_of(root).nemo.renamed.items()},
        }
        for verb, root in ROOTS.items()
    }
    parts = [
        _INTRODUCTION,
        _KEYS,
        *filter(None, map(_section, sections)),
        _IGNORED,
        _table(("key", "why"), ignored),
        _OTHER_NAMES,
        _table(("key", "meaning"), _by_verb(other)),
    ]
    return "\n".join(parts)


def _section(name: str) -> str:
    rows = [
        _row(key, verb)
        for verb, root in ROOTS.items()
        for key in all_keys(root).values()
        if key.name.rpartition(".")[0] == name
    ]
    verbs = dict.fromkeys(verb for _, verb, *_ in rows)
    table = _table(("key", "value", "default", "meaning"), _merged(rows, len(verbs)))
    docs = {str(all_sections(ROOTS[verb])[name].__doc__): verb for verb in verbs}
    text = " ".join(docs) if len(docs) == 1 else " ".join(f"`{verb}`: {doc}" for doc, verb in docs.items())
    title = f"`{name}`" if name else "The root"
    return f"### {title}{_only(verbs, len(ROOTS))}\n\n{text}\n\n{table}" if rows else ""


def _row(key: Key, verb: str) -> tuple[str, str, str, str, str]:
    """(name, verb, type, default, meaning) of a key."""
    idle = key.metadata.get("idle")
    meaning = help_texts(ROOTS[verb])[key.name] + (f" No effect in this version: {idle}." if idle else "")
    default = key.default if isinstance(key.default, str) and key.followed else json.dumps(key.default)
    name = key.name.rpartition(".")[2]
    return name, verb, describe(key.annotation).replace(" or null", ", null"), str(default), meaning


def _merged(rows: Iterable[tuple[str, str, str, str, str]], num_verbs: int) -> Iterator[tuple[str, ...]]:
    """One row for a key that all verbs of the section have, with their defaults where they differ."""
    defaults: dict[tuple[str, str, str], dict[str, str]] = {}
    for name, verb, values, default, meaning in rows:
        defaults.setdefault((name, values, meaning), {})[verb] = default
    for (name, values, meaning), by_verb in defaults.items():
        same = len(set(by_verb.values())) == 1
        shown = f"`{next(iter(by_verb.values()))}`" if same else ", ".join(f"{v}: `{d}`" for v, d in by_verb.items())
        yield f"`{name}`{_only(by_verb, num_verbs)}", values, shown, meaning


def _by_verb(tables: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    """(key, text) of the tables of all verbs, marked where not all of them have it."""
    verbs: dict[tuple[str, str], dict[str, str]] = {}
    for verb, table in tables.items():
        for key, text in table.items():
            verbs.setdefault((key, text), {})[verb] = text
    for (key, text), by_verb in verbs.items():
        yield f"`{key}`{_only(by_verb, len(ROOTS))}", text


def _only(verbs: Iterable[str], expected: int) -> str:
    """The mark of what not all of the expected verbs have."""
    having = list(verbs)
    return "" if len(having) == expected else f" ({', '.join(having)})"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = (head, ("---",) * len(head), *rows)
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(page())
