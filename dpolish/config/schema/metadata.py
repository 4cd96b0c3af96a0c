"""What a field says about itself besides its type and its default; read by `keys`, `draft`, `typed` and `compose`.

follow     the interpolation that is this key's default: the key follows another until it is given
both_ways  the key and the one it follows are one value: where only this one is given, the other takes it
replaces   the sibling that becomes null when this key is given
idle       why the key has no effect; it is named to the user when given another value than its default
literal    the text is kept as it is written, `${` too
escapes    `\\n`, `\\x11` and the like stand for their characters, for a shell has no other way to write them
refused    texts that are refused with a reason of their own
booleans   what `false` and `true` (YAML's `off` and `on`) stand for
inside     on a section: further metadata of its fields, by name, for this place alone
"""

from collections.abc import Mapping
from types import MappingProxyType

IDLE_CHECKPOINTS = {"idle": "resumable checkpoints are not in this version; the model is saved once, at the end"}
IDLE_LORA = {"idle": "it has a meaning only with LoRA, which is not in this version"}
IDLE_WORKERS = {"idle": "rows are tokenised before training; there is nothing left for workers to do"}
IDLE_PADDING = {"idle": "rows are padded by themselves to what sequence parallelism and the attention kernel need"}
NO_FLOAT16 = {"refused": dict.fromkeys(("16", "16-mixed", "16-true"), "float16 needs loss scaling: use bf16 or 32")}


def follow(interpolation: str) -> Mapping[str, object]:
    """Metadata of a key that follows another one until it is given."""
    return {"follow": interpolation}


def inside(**metadata: Mapping[str, object]) -> Mapping[str, object]:
    """Metadata of a section: what its fields are besides, here and not where else their class stands."""
    return {"inside": MappingProxyType(metadata)}
