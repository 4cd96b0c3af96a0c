"""Log-probabilities of completions under a reference, stored by content.

    ROOT/IDENTITY/SHA256.safetensors     keys (N, 32) uint8, logprobs (N,) float32

IDENTITY is what moves a log-probability by more than rounding: weights, architecture, compute dtype, attention backend.
A key is the completion's tokens and where scoring starts. β, loss, learning rate, packing, ranks and row order are in
neither. A segment's name is the hash of its bytes: a damaged one is recognised, put aside and computed again, never
believed.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dpolish.errors import RunError
from dpolish.files import write_atomically
from dpolish.tensors import Completion, Example

FORMAT = 1
"""Raised when the meaning of a stored number changes."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a reference log-probability depends on, besides the tokens."""

    weights: str
    """Fingerprint of the weights and the architecture (`dpolish.reference.fingerprint`)."""
    dtype: str
    attention_backend: str

    @property
    def digest(self) -> str:
        """Name of the folder that holds this reference's numbers."""
        fields = [FORMAT, self.weights, self.dtype, self.attention_backend]
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:32]


def completion_key(example: Example, completion: Completion) -> bytes:
    """sha256 of all tokens up to the completion's end and of the places that are scored."""
    tokens = np.concatenate([example.prompt, completion.tokens]).astype("<i4")
    scored = (len(example.prompt) + completion.scored_at).astype("<i4")
    return hashlib.sha256(len(tokens).to_bytes(8, "little") + tokens.tobytes() + scored.tobytes()).digest()


class ReferenceCache:
    """Stored log-probabilities of one reference. `root` None keeps nothing on disk."""

    def __init__(self, root: Path | None, identity: Identity) -> None:
        self._folder = None if root is None else root / identity.digest
        self._identity = identity
        self._known: dict[bytes, float] = {}
        self.notes: list[str] = []
        """What was found wrong in the store and left out."""
        if self._folder is not None and self._folder.is_dir():
            for segment in sorted(self._folder.glob("*.safetensors")):
                self._load(segment)

    def __len__(self) -> int:
        return len(self._known)

    def lookup(self, examples: Sequence[Example]) -> npt.NDArray[np.float32]:
        """(N, completions): what is stored; NaN where nothing is."""
        nan = float("nan")
        rows = [[self._known.get(completion_key(row, part), nan) for part in row.completions] for row in examples]
        return np.array(rows, dtype=np.float32)

    def add(self, examples: Sequence[Example], logprobs: npt.NDArray[np.float32]) -> None:
        """Store one segment: all completions of `examples`, whole on disk or not there."""
        keys = [completion_key(row, part) for row in examples for part in row.completions]
        values = logprobs.reshape(-1)
        self._known.update(zip(keys, values.tolist(), strict=True))
        if self._folder is None or not keys:
            return
        digests = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 32)
        content = save({"keys": digests, "logprobs": values}, metadata={"identity": self._identity.digest})
        self._write(f"{hashlib.sha256(content).hexdigest()}.safetensors", content)

    def require_writable(self) -> None:
        """Raise RunError unless segments can be stored: better before hours of scoring than behind them."""
        if self._folder is not None:
            probe = f"probe-{os.getpid()}"
            self._write(probe, b"")
            (self._folder / probe).unlink(missing_ok=True)

    def _write(self, name: str, content: bytes) -> None:
        assert self._folder is not None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._folder / name, content)
        except (OSError, RunError) as error:
            raise RunError(
                f"reference cache: {error}\n  Or set model.dpo.reference_cache to another folder, or to off."
            ) from error

    def _load(self, segment: Path) -> None:
        fault = None
        try:
            if hashlib.sha256(segment.read_bytes()).hexdigest() != segment.stem:
                fault = "is damaged (its content does not match its name)"
            else:
                with safe_open(segment, framework="numpy") as table:
                    if (table.metadata() or {}).get("identity") != self._identity.digest:
                        fault = "belongs to another reference"
                    else:
                        keys, values = table.get_tensor("keys"), table.get_tensor("logprobs")
                        self._known.update(zip((key.tobytes() for key in keys), values.tolist(), strict=True))
        except (OSError, SafetensorError, ValueError) as error:
            fault = f"cannot be read ({error})"
        if fault is not None:
            self.notes.append(f"reference cache: {segment} {fault}; it is put aside, and its rows are scored again")
            with suppress(OSError):  # another run was faster, or the store is another user's
                os.replace(segment, segment.with_suffix(".bad"))
