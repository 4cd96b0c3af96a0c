"""Three backends, one attention: values and gradients in float64, against visibility written out query by query."""

from collections.abc import Callable, Sequence

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor

from dpolish.errors import ConfigError
from dpolish.model import attention
from dpolish.model.attention import BACKENDS, Geometry, Spec, choose_backend, segments, tails, visible
from dpolish.model.attention.geometry import Tail
from dpolish.tensors import Layout, Node

CPU = torch.device("cpu")
HEADS, KEY_HEADS, SIZE = 4, 2, 8

Node_ = tuple[int, int | None]
"""(tokens, the node that it continues)."""


def tree(*nodes: Node_, at: int = 0, first: int = 0) -> tuple[Node, ...]:
    """Nodes one behind the other from a place on, `first` being the number of the first in its layout."""
    starts = [at + sum(length for length, _ in nodes[:number]) for number in range(len(nodes))]
    return tuple(
        Node(start, length, None if parent is None else parent + first)
        for start, (length, parent) in zip(starts, nodes, strict=True)
    )


def layout(rows: int, width: int, *trees: tuple[int, tuple[Node_, ...]]) -> Layout:
    """Trees, each from a place on; inside a tree, nodes are counted from its own first."""
    nodes: tuple[Node, ...] = ()
    for at, members in trees:
        nodes = (*nodes, *tree(*members, at=at, first=len(nodes)))
    return Layout(rows, width, nodes)


@st.composite
def trees(draw: st.DrawFn) -> Layout:
    """One or two rows of nodes in depth-first order, with places between them that belong to none."""
    rows, width = draw(st.integers(1, 2)), 24
    nodes: list[Node] = []
    for row in range(rows):
        at = row * width + draw(st.integers(0, 2))
        way: list[int | None] = [None]
        while at < (row + 1) * width and draw(st.integers(0, 5)):
            length = draw(st.integers(1, min(6, (row + 1) * width - at)))
            depth = draw(st.integers(1, len(way)))  # continues a node on the way to the last one
            way = [*way[:depth], len(nodes)]
            nodes.append(Node(at, length, way[depth - 1]))
            at += length + draw(st.integers(0, 1))
    assume(nodes)
    return Layout(rows, width, tuple(nodes))


def answers(prompt: int, *lengths: int) -> tuple[Node_, ...]:
    return ((prompt, None), *((length, 0) for length in lengths))


LAYOUTS = {
    "one pair": layout(1, 18, (0, answers(7, 5, 6))),
    "packed": layout(1, 40, (0, answers(7, 5, 6)), (18, answers(1, 1, 1)), (21, answers(3, 9, 2))),  # ends in padding
    "no prompt": layout(1, 21, (0, ((4, None), (3, None))), (7, answers(5, 2, 7))),
    "one answer": layout(1, 17, (0, answers(6, 5)), (11, answers(2, 4))),
    "four answers": layout(1, 24, (0, answers(6, 5, 3, 1, 9))),
    "padded rows": layout(3, 16, (0, answers(7, 5, 4)), (16, answers(3, 2, 1)), (32, answers(9, 6, 1))),
    "two in a row": layout(2, 16, (0, answers(3, 2, 1)), (6, answers(4, 3, 3)), (16, answers(2, 6, 1))),
    "two pairs that begin alike": layout(1, 30, (1, ((6, None), (3, 0), (4, 1), (2, 1), (2, 0), (5, 4), (4, 4)))),
    "a prompt that another goes on from": layout(1, 26, (0, ((5, None), (4, 0), (3, 0), (2, 0), (6, 3), (5, 3)))),
    "deep": layout(
        1, 32, (0, ((2, None), (3, 0), (1, 1), (4, 2), (2, 2), (3, 1), (5, 5), (2, 0), (6, 7))), (28, ((3, None),))
    ),
    "gaps inside a tree": Layout(1, 20, (Node(1, 4, None), Node(7, 3, 0), Node(10, 2, 1), Node(14, 5, 0))),
}


def spec(scale: float = 0.3, *, window: int | None = None, softcap: float | None = None, sinks: bool = False) -> Spec:
    return Spec(scale, window, softcap, torch.linspace(-1, 2, HEADS, dtype=torch.float64) if sinks else None)


def inputs(layout: Layout, key_heads: int = KEY_HEADS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(layout.rows, heads, layout.width, SIZE) for heads in (HEADS, key_heads, key_heads)]
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


def taken(layout: Layout) -> Tensor:
    """bool (B, W): places that belong to a node."""
    mask = torch.zeros(layout.rows * layout.width, dtype=torch.bool)
    for node in layout.nodes:
        mask[node.start : node.end] = True
    return mask.view(layout.rows, layout.width)


def run(backend: str, layout: Layout, asked: Spec, sides: list[Tensor]) -> Tensor:
    return BACKENDS[backend](Geometry(layout, backend), *sides, asked)


def by_definition(layout: Layout, asked: Spec, sides: list[Tensor]) -> Tensor:
    """(B, W, H, d): every query by itself, its keys chosen one by one."""
    query, key, value = sides
    out = torch.zeros_like(query.transpose(1, 2))
    seen = visible_by_definition(layout, asked.window)
    for place, keys in seen.items():
        row, column = divmod(place, layout.width)
        columns = [key % layout.width for key in keys]
        for head in range(HEADS):
            side = head // (HEADS // key.shape[1])
            scores = key[row, side, columns] @ query[row, head, column] * asked.scale
            if asked.softcap is not None:
                scores = asked.softcap * torch.tanh(scores / asked.softcap)
            weights = scores.exp()
            sink = 0 if asked.sinks is None else asked.sinks[head].exp()
            out[row, column, head] = weights @ value[row, side, columns] / (weights.sum() + sink)
    return out


def visible_by_definition(layout: Layout, window: int | None) -> dict[int, list[int]]:
    """Place → the places that it sees: those on the way from the root to it, the nearest `window` of them."""
    ways: list[list[int]] = []
    seen = {}
    for node in layout.nodes:
        way = [] if node.parent is None else list(ways[node.parent])
        for place in range(node.start, node.end):
            way = [*way, place]
            seen[place] = way if window is None else way[-window:]
        ways.append(way)
    return seen


@given(trees(), st.none() | st.integers(1, 12))
def test_tails_see_what_the_definition_says(where: Layout, window: int | None) -> None:
    """Every place is a query once, and a tail is the end of an ordinary sequence."""
    found = {}
    for tail in tails(where):
        keys = [tail.row * where.width + first + i for first, number in tail.keys for i in range(number)]
        first, number = tail.queries
        queries = [tail.row * where.width + place for place in range(first, first + number)]
        assert keys[-number:] == queries
        for query, seen in zip(queries, visible(number, len(keys), window, CPU).tolist(), strict=True):
            assert query not in found
            found[query] = [key for key, is_seen in zip(keys, seen, strict=True) if is_seen]
    assert found == visible_by_definition(where, window)


@given(trees(), st.sampled_from([None, 1, 3, 100]), st.sampled_from([2, 512]))
@settings(deadline=None)
def test_backends_agree_on_any_tree(where: Layout, window: int | None, chunk: int) -> None:
    sides = inputs(where)
    leaves = {name: [side.clone().requires_grad_() for side in sides] for name in ("segments", "dense")}
    upstream = torch.randn(where.rows, where.width, HEADS, SIZE, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "QUERY_CHUNK", chunk)
        values = {name: run(name, where, spec(window=window), leaves[name]) for name in leaves}
        gradients = {name: torch.autograd.grad((values[name] * upstream).sum(), leaves[name]) for name in leaves}
    torch.testing.assert_close(
        values["dense"], by_definition(where, spec(window=window), sides), rtol=1e-11, atol=1e-11
    )
    torch.testing.assert_close(values["segments"], values["dense"], rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(gradients["segments"], gradients["dense"], rtol=1e-10, atol=1e-11)


ASKED = {
    "plain": spec(),
    "window": spec(window=4),
    "window of one": spec(window=1),
    "window that hides nothing": spec(window=100),
    "soft-cap": spec(softcap=0.7),
    "sinks": spec(sinks=True),
    "window and soft-cap": spec(window=4, softcap=0.7),
    "window and sinks": spec(window=4, sinks=True),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_is_the_definition(layout: str, asked: str) -> None:
    sides = inputs(LAYOUTS[layout])
    truth = by_definition(LAYOUTS[layout], ASKED[asked], sides)
    torch.testing.assert_close(run("dense", LAYOUTS[layout], ASKED[asked], sides), truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("key_heads", [1, 4])
@pytest.mark.parametrize("chunk", [4, 512])
@pytest.mark.parametrize("asked", ["plain", "window", "window of one", "window that hides nothing", "sinks"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_segments_equal_dense_in_values_and_gradients(
    layout: str, asked: str, chunk: int, key_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "QUERY_CHUNK", chunk)
    where = LAYOUTS[layout]
    sides = inputs(where, key_heads)
    upstream = torch.randn(where.rows, where.width, HEADS, SIZE, dtype=torch.float64)
    upstream[~taken(where)] = 0  # nothing reads what stands in padding

    def value_and_gradients(backend: str) -> tuple[Tensor, ...]:
        leaves = [side.clone().requires_grad_() for side in sides]
        value = run(backend, where, ASKED[asked], leaves)
        return value, *torch.autograd.grad((value * upstream).sum(), leaves)

    ours, oracle = value_and_gradients("segments"), value_and_gradients("dense")
    torch.testing.assert_close(ours, oracle, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("key_heads", [1, 4])
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.filterwarnings("ignore")  # uncompiled it is slow, and says so
def test_flex_equals_dense_in_values(layout: str, asked: str, key_heads: int) -> None:
    where = LAYOUTS[layout]
    sides = inputs(where, key_heads)
    with torch.no_grad():
        ours = run("flex", where, ASKED[asked], sides)
    truth = run("dense", where, ASKED[asked], sides)
    torch.testing.assert_close(ours[taken(where)], truth[taken(where)], rtol=1e-10, atol=1e-11)
    assert ours.isfinite().all(), "padding is read by nothing, but NaN times zero is NaN"


@pytest.mark.parametrize("backend", ["segments", "dense"])
@pytest.mark.parametrize("layout", ["packed", "padded rows"])
def test_padding_is_zero_and_gets_no_gradient(backend: str, layout: str) -> None:
    where = LAYOUTS[layout]
    sides = [side.requires_grad_() for side in inputs(where)]
    value = run(backend, where, spec(), sides)
    assert not value[~taken(where)].any()
    for gradient in torch.autograd.grad(value.sum(), sides):
        assert not gradient.transpose(1, 2)[~taken(where)].any()


@pytest.mark.parametrize("backend", ["segments", "dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_near(backend: str, dtype: torch.dtype) -> None:
    where = LAYOUTS["packed"]
    sides = inputs(where)
    ours = run(backend, where, spec(window=6), [side.to(dtype) for side in sides])
    assert ours.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(
        ours.double(), run("dense", where, spec(window=6), sides), rtol=tolerance, atol=tolerance
    )


def test_many_tails_add_to_a_key_without_losing_bits() -> None:
    """256 answers to one prompt in bfloat16: the sum of their gradients is no worse than each of them."""
    where = layout(1, 8 + 256 * 2, (0, answers(8, *[2] * 256)))
    sides = [side.to(torch.bfloat16) for side in inputs(where)]
    upstream = torch.ones(where.rows, where.width, HEADS, SIZE, dtype=torch.bfloat16)

    def of_keys(dtype: torch.dtype) -> Tensor:
        leaves = [side.to(dtype).requires_grad_() for side in sides]
        out = run("segments", where, spec(), leaves)
        return torch.autograd.grad((out * upstream.to(dtype)).sum(), leaves)[2][:, :, :8].double()

    truth = of_keys(torch.float64)
    assert float((of_keys(torch.bfloat16) - truth).norm() / truth.norm()) < 5e-3


def test_a_layout_lies_depth_first() -> None:
    with pytest.raises(AssertionError, match="depth first"):
        Layout(1, 6, (Node(0, 2, None), Node(2, 2, None), Node(4, 2, 0)))


def test_what_is_derived_from_a_layout_is_made_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int | None] = []
    original: Callable[..., tuple[segments.Piece, ...]] = segments.pieces_of

    def counted(found: Sequence[Tail], window: int | None, dtype: torch.dtype) -> tuple[segments.Piece, ...]:
        made.append(window)
        return original(found, window, dtype)

    monkeypatch.setattr(segments, "pieces_of", counted)
    geometry, sides = Geometry(LAYOUTS["packed"], "segments"), inputs(LAYOUTS["packed"])
    for _ in range(3):
        for window in (None, 4, 100):  # 100 hides nothing: the same pieces as None
            BACKENDS["segments"](geometry, *sides, spec(window=window))
    assert made == [None, 4]


def test_dropout_and_calls_without_a_layout_are_faults_of_ours() -> None:
    sides = inputs(LAYOUTS["one pair"])
    with pytest.raises(AssertionError, match="outside use_geometry"):
        attention.attend(torch.nn.Identity(), *sides, None)
    with (
        attention.use_geometry(Geometry(LAYOUTS["one pair"], "dense")),
        pytest.raises(AssertionError, match="dropout reached"),
    ):
        attention.attend(torch.nn.Identity(), *sides, None, dropout=0.1)


def test_the_function_counts_its_calls_and_scales_by_the_head_size_unless_told() -> None:
    layout = LAYOUTS["one pair"]
    sides, geometry = inputs(layout), Geometry(layout, "dense")
    with attention.use_geometry(geometry):
        out, _ = attention.attend(torch.nn.Identity(), *sides, None)
        told, _ = attention.attend(torch.nn.Identity(), *sides, None, scaling=0.3, sliding_window=4)
    assert geometry.calls == 2
    torch.testing.assert_close(out, by_definition(layout, spec(SIZE**-0.5), sides))
    torch.testing.assert_close(told, by_definition(layout, spec(0.3, window=4), sides))


@pytest.mark.parametrize(
    ("device", "forbidden", "chosen"),
    [
        ("cpu", (), "segments"),
        ("cuda", (), "flex"),
        ("mps", (), "dense"),
        ("cpu", ("segments",), "dense"),
        ("cuda", ("flex",), "dense"),
        ("cpu", ("flex",), "segments"),
    ],
)
def test_auto_is_the_fastest_that_runs_and_is_allowed(device: str, forbidden: tuple[str, ...], chosen: str) -> None:
    assert choose_backend("auto", torch.device(device), frozenset(forbidden)) == chosen


@pytest.mark.parametrize(
    ("asked", "device", "forbidden", "message"),
    [
        ("flex", "cpu", (), r"attention_backend=flex does not run on cpu; use one of: auto, segments, dense"),
        ("segments", "cuda", (), r"attention_backend=segments does not run on cuda; use one of: auto, flex, dense"),
        ("segments", "mps", (), r"use one of: auto, dense"),
        ("segments", "cpu", ("segments",), r"forbidden by the environment\); use one of: auto, dense"),
    ],
)
def test_a_backend_that_cannot_run_is_refused(
    asked: str, device: str, forbidden: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_backend(asked, torch.device(device), frozenset(forbidden))


@pytest.mark.parametrize("asked", ["segments", "dense"])
def test_a_backend_that_runs_is_taken(asked: str) -> None:
    assert choose_backend(asked, CPU) == asked
