"""Random examples with the awkward shapes: no prompt, one-token answers, an answer that starts to score late."""

import numpy as np

from dpolish.tensors import Completion, Example


def random_examples(count: int, seed: int = 0, vocabulary: int = 128, longest: int = 24) -> list[Example]:
    """`count` pairs of random tokens; the first few are the awkward ones."""
    rng = np.random.default_rng(seed)

    def tokens(length: int) -> np.ndarray:
        return rng.integers(3, vocabulary, length).astype(np.int32)

    shapes = [(5, 3, 4, 0), (1, 1, 1, 0), (0, 4, 3, 1), (9, 6, 2, 1), (longest, 12, 17, 0)]
    shapes += [
        (int(rng.integers(1, longest)), int(rng.integers(2, 12)), int(rng.integers(2, 12)), 0) for _ in range(count)
    ]
    return [
        Example(tokens(p), (Completion(tokens(c), late), Completion(tokens(r), late)), (1.0, 0.0))
        for p, c, r, late in shapes[:count]
    ]
