"""What the machinery knows of a tree besides its sections: short flags, what a run needs, NeMo-Aligner's other keys."""

from collections.abc import Mapping
from dataclasses import dataclass

from dpolish.config import nemo_keys
from dpolish.config.nemo_keys import NemoKeys
from dpolish.config.schema import DpoConfig, SftConfig

DATA_PREFIX = "model.data.data_prefix"


@dataclass(frozen=True, slots=True)
class Tree:
    """One verb's way to name what all verbs have."""

    flags: Mapping[str, str]
    """Short flag to the key that it sets."""
    required: Mapping[str, str]
    """Keys that a run cannot do without, and what to do where one is missing."""
    may_be_missing: frozenset[str]
    """Keys whose `???` stays null until the run asks for them."""
    displaced: Mapping[str, tuple[str, ...]]
    """Key of a flag to the file's other ways of saying the same, which the flag outdoes."""
    nemo: NemoKeys


_DPO_MODEL, _SFT_MODEL = "pretrained_checkpoint.restore_from_path", "model.restore_from_path"
_SFT_TRAIN, _SFT_VALIDATION = (f"model.data.{rows}.file_path" for rows in ("train_ds", "validation_ds"))

_TREES: Mapping[type, Tree] = {
    DpoConfig: Tree(
        flags={
            "model": _DPO_MODEL,
            "train": f"{DATA_PREFIX}.train",
            "validation": f"{DATA_PREFIX}.validation",
            "output": "exp_manager.explicit_log_dir",
        },
        required={
            _DPO_MODEL: "name the model to polish, with this key or with --model",
            f"{DATA_PREFIX}.train": f"name the training files, with {DATA_PREFIX}={{train: [...]}} or with --train",
        },
        may_be_missing=frozenset({_DPO_MODEL, DATA_PREFIX}),
        displaced={},
        nemo=nemo_keys.DPO,
    ),
    SftConfig: Tree(
        flags={
            "model": _SFT_MODEL,
            "train": _SFT_TRAIN,
            "validation": _SFT_VALIDATION,
            "output": "exp_manager.explicit_log_dir",
        },
        required={
            _SFT_MODEL: "name the model to train, with this key or with --model",
            _SFT_TRAIN: "name the training files, with this key or with --train",
        },
        may_be_missing=frozenset({_SFT_MODEL, _SFT_TRAIN, _SFT_VALIDATION}),
        displaced={
            path: tuple(path.replace("file_path", name) for name in ("file_names", "concat_sampling_probabilities"))
            for path in (_SFT_TRAIN, _SFT_VALIDATION)
        },
        nemo=nemo_keys.SFT,
    ),
}


def tree_of(root: type) -> Tree:
    """What there is to know of a root."""
    return _TREES[root]
