"""Three backends, one attention: values and gradients in float64, against visibility written out query by query."""

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from dpolish.errors import ConfigError
from dpolish.model import attention
from dpolish.model.attention import BACKENDS, Geometry, Spec, choose_backend, segments, visible
from dpolish.tensors import Layout, Span

CPU = torch.device("cpu")
HEADS, KEY_HEADS, SIZE = 4, 2, 8

LAYOUTS = {
    "one pair": Layout(1, 18, (Span(0, 7, (5, 6)),)),
    "packed": Layout(1, 40, (Span(0, 7, (5, 6)), Span(18, 1, (1, 1)), Span(21, 3, (9, 2)))),  # ends in padding
    "no prompt": Layout(1, 21, (Span(0, 0, (4, 3)), Span(7, 5, (2, 7)))),
    "one answer": Layout(1, 17, (Span(0, 6, (5,)), Span(11, 2, (4,)))),
    "four answers": Layout(1, 24, (Span(0, 6, (5, 3, 1, 9)),)),
    "padded rows": Layout(3, 16, (Span(0, 7, (5, 4)), Span(16, 3, (2, 1)), Span(32, 9, (6, 1)))),
    "two in a row": Layout(2, 16, (Span(0, 3, (2, 1)), Span(6, 4, (3, 3)), Span(16, 2, (6, 1)))),
}


def spec(scale: float = 0.3, *, window: int | None = None, softcap: float | None = None, sinks: bool = False) -> Spec:
    return Spec(scale, window, softcap, torch.linspace(-1, 2, HEADS, dtype=torch.float64) if sinks else None)


def inputs(layout: Layout, key_heads: int = KEY_HEADS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(layout.rows, heads, layout.width, SIZE) for heads in (HEADS, key_heads, key_heads)]
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


def taken(layout: Layout) -> Tensor:
    """bool (B, W): places that belong to a span."""
    mask = torch.zeros(layout.rows * layout.width, dtype=torch.bool)
    for span in layout.spans:
        mask[span.start : span.start + span.length] = True
    return mask.view(layout.rows, layout.width)


def run(backend: str, layout: Layout, asked: Spec, sides: list[Tensor]) -> Tensor:
    return BACKENDS[backend](Geometry(layout, backend), *sides, asked)


def by_definition(layout: Layout, asked: Spec, sides: list[Tensor]) -> Tensor:
    """(B, W, H, d): every query by itself, its keys chosen one by one."""
    query, key, value = sides
    out = torch.zeros_like(query.transpose(1, 2))
    for span in layout.spans:
        row, start = divmod(span.start, layout.width)
        seen = _visible_by_definition(span, asked.window)
        for place in range(span.length):
            keys = [start + other for other in range(span.length) if seen[place][other]]
            for head in range(HEADS):
                side = head // (HEADS // key.shape[1])
                scores = key[row, side, keys] @ query[row, head, start + place] * asked.scale
                if asked.softcap is not None:
                    scores = asked.softcap * torch.tanh(scores / asked.softcap)
                weights = scores.exp()
                sink = 0 if asked.sinks is None else asked.sinks[head].exp()
                out[row, start + place, head] = weights @ value[row, side, keys] / (weights.sum() + sink)
    return out


def _visible_by_definition(span: Span, window: int | None) -> list[list[bool]]:
    """Of two places: not behind, in the prompt or the same branch, and near enough where there is a window."""
    places = [(0, position) for position in range(span.prompt)]
    for branch, length in enumerate(span.branches, start=1):
        places += [(branch, span.prompt + index) for index in range(length)]
    return [
        [
            j <= i and theirs in (0, mine) and (window is None or position - other < window)
            for j, (theirs, other) in enumerate(places)
        ]
        for i, (mine, position) in enumerate(places)
    ]


@given(st.integers(0, 6), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.none() | st.integers(1, 12))
def test_visibility_is_the_definition(prompt: int, branches: list[int], window: int | None) -> None:
    span = Span(0, prompt, tuple(branches))
    assert visible(span, window, CPU).tolist() == _visible_by_definition(span, window)


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


def test_what_is_derived_from_a_layout_is_made_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int | None] = []
    original: Callable[..., tuple[segments.Piece, ...]] = segments.pieces_of

    def counted(layout: Layout, window: int | None, dtype: torch.dtype) -> tuple[segments.Piece, ...]:
        made.append(window)
        return original(layout, window, dtype)

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
