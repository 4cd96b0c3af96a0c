"""Random examples with the awkward shapes: no prompt, one-token answers, an answer that starts to score late."""

from dataclasses import replace

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


def alike_examples(count: int, seed: int = 0, vocabulary: int = 128, longest: int = 24) -> list[Example]:
    """`random_examples`, of which all but every fourth begin alike; two prompts are equal, and one goes on from it."""
    head = random_examples(1, seed + 1, vocabulary)[0].prompt.repeat(2)
    examples = random_examples(count, seed, vocabulary, longest)
    begun = [
        replace(example, prompt=np.concatenate([head, example.prompt])) if index % 4 else example
        for index, example in enumerate(examples)
    ]
    if count > 6:
        first = begun[1].prompt
        begun[5] = replace(begun[5], prompt=first)
        begun[6] = replace(begun[6], prompt=np.concatenate([first, begun[6].prompt]))
    return begun
