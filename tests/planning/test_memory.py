"""Memory of one rank: by hand, what divides it, and the tokens that fit."""

from dataclasses import replace

import pytest

from dpolish.layout import RankLayout
from dpolish.planning.memory import HEAD_BYTES, HEAP_SHARE, RESERVED_SHARE, Work, fitting_tokens, memory_of
from dpolish.planning.values import DataFacts, Memory
from tests.planning.sizes import LLAMA_70B, SMALL

ALONE = RankLayout()
GPU = Work("cuda", "bf16", tokens=4096)
CPU = Work("cpu", "32", tokens=1000)
PARTS = ("weights", "gradients", "optimizer", "gathered", "activations", "head", "fragmentation", "reserve")


def of(layout: RankLayout, work: Work = GPU, memory: int = 80 * 10**9) -> Memory:
    return memory_of(LLAMA_70B, layout, work, memory)


def test_one_rank_by_hand() -> None:
    made = memory_of(SMALL, ALONE, CPU, 10**9)
    assert SMALL.num_parameters == 1_402_100
    assert (made.weights, made.gradients, made.optimizer) == tuple(1_402_100 * size for size in (4, 4, 8))
    kept = 10 * ((2 + 2) * 100 + 2 * 100 + 2 * 50 + 4 * 300)  # norms, attention, keys and values, feed-forward
    busy = 2 * 100 + 3 * 300
    assert made.activations == 1000 * (kept + busy) * 4
    assert made.head == 1000 * 1000 * 4 + 1000 * 100 * 4  # logits, and the gradient of the head
    assert made.gathered == 0
    assert made.fragmentation == round(HEAP_SHARE * (made.activations + made.head))
    assert made.reserve == RESERVED_SHARE * 10**9
    assert made.total == sum(getattr(made, part) for part in PARTS)


def test_bfloat16_on_one_rank_has_float32_masters_besides() -> None:
    made = memory_of(SMALL, ALONE, replace(CPU, precision="bf16"), 10**9)
    assert (made.weights, made.gradients, made.optimizer) == tuple(1_402_100 * size for size in (2, 4, 12))


def test_shards_divide_the_state_and_gather_two_layers() -> None:
    layout = RankLayout(num_nodes=2, devices=8, shard=16)
    made = of(layout)
    own = LLAMA_70B.num_parameters / 16
    assert (made.weights, made.gradients, made.optimizer) == tuple(round(own * size) for size in (4, 4, 8))
    layer = 2 * 8192**2 + 2 * 1024 * 8192 + 3 * 28672 * 8192 + 2 * 8192
    outside = 2 * 128256 * 8192 + 8192
    assert made.gathered == (2 * layer + outside) * 2 + layer * (2 + 4) + outside * 2
    assert made.activations == of(ALONE).activations, "each rank has rows of its own"


def test_whole_copies_keep_all_gradients_until_the_step_ends() -> None:
    copies = of(RankLayout(devices=8, shard=1))
    assert copies.weights == 4 * LLAMA_70B.num_parameters
    assert copies.gathered - of(RankLayout(devices=8, shard=8)).gathered == 4 * LLAMA_70B.num_parameters


def test_tensor_parallelism_divides_matrices_alone() -> None:
    made = of(RankLayout(devices=8, tensor=8))
    vectors = 80 * 2 * 8192 + 8192
    assert made.weights == 4 * ((LLAMA_70B.num_parameters - vectors) / 8 + vectors)
    sequence = of(RankLayout(devices=8, tensor=8), replace(GPU, sequence_parallel=True))
    assert of(ALONE).activations / 8 < sequence.activations < made.activations < of(ALONE).activations
    assert made.head < of(ALONE).head


def test_ranks_that_share_a_sequence_keep_their_part_of_it() -> None:
    shared, whole = of(RankLayout(devices=8, shard=8, context=4)), of(RankLayout(devices=8, shard=8))
    assert shared.activations == pytest.approx(whole.activations / 4)
    assert (shared.weights, shared.gathered) == (whole.weights, whole.gathered)


def test_recomputation_keeps_inputs_and_one_layer() -> None:
    recompute = replace(GPU, recompute=True)
    assert of(ALONE, recompute).activations < of(ALONE).activations / 10
    assert of(ALONE, recompute).activations > GPU.tokens * 80 * 8192 * 2


def test_offloading_leaves_what_layers_need() -> None:
    made = of(RankLayout(devices=8, shard=8), replace(GPU, offload=True))
    assert made.model == made.gathered > 0


def test_the_head_works_in_chunks_and_on_scored_tokens() -> None:
    few, many = (memory_of(SMALL, ALONE, replace(CPU, tokens=tokens), 10**9).head for tokens in (1000, 10**7))
    assert many - 400_000 == HEAD_BYTES
    half = memory_of(SMALL, ALONE, replace(CPU, scored_share=0.5), 10**9).head
    assert half - 400_000 == (few - 400_000) / 2


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "share"), [(100, 50, 50, 0.5), (0, 50, 50, 1.0), (300, 10, 90, 0.05)]
)
def test_scored_tokens_of_pairs(prompt: int, chosen: int, rejected: int, share: float) -> None:
    tokens, padded = prompt + chosen + rejected, 2 * (prompt + max(chosen, rejected))
    assert DataFacts(1, tokens, padded, tokens).scored_share == pytest.approx(share)


def test_what_prompts_begin_with_alike_is_computed_once_and_answers_are_not() -> None:
    facts = DataFacts(2, 400, 600, 200, alike=80)
    assert facts.packed_tokens == 320
    assert facts.scored_share == pytest.approx(200 / 320)


def test_demonstrations_may_be_scored_everywhere() -> None:
    assert DataFacts(2, 300, 300, 200).scored_share == 1.0


@pytest.mark.parametrize("memory", [20 * 10**6, 50 * 10**6, 200 * 10**6, 10**12])
def test_the_most_tokens_that_fit(memory: int) -> None:
    most = fitting_tokens(SMALL, ALONE, replace(CPU, tokens=100_000), memory)

    def total(tokens: int) -> int:
        return memory_of(SMALL, ALONE, replace(CPU, tokens=tokens), memory).total

    assert most == 0 or total(most) <= memory
    assert most == 100_000 or total(most + 1) > memory


def test_most_of_a_70b_model_is_known_by_heart() -> None:
    """Megatron's rule of thumb, 16 to 18 bytes a parameter before anything is divided."""
    made = of(ALONE)
    assert (made.weights + made.gradients + made.optimizer) / 70.55e9 == pytest.approx(18, rel=1e-3)
