"""The first rows as tokens: which are trained is what training scores."""

import re
from io import StringIO
from pathlib import Path
from typing import Literal

from rich.console import Console

from dpolish.data.check.model import TokenChecks
from dpolish.data.check.show import marked_text, show
from dpolish.data.check.source import Options
from tests.data.check.corpus import assistant, pair, rows, system, user
from tests.data.small_tokenizers import byte_level, metaspace


def shown(path: Path, tokens: TokenChecks, count: int, task: Literal["dpo", "sft"] = "dpo") -> str:
    out = StringIO()
    show(Console(file=out, highlight=False), [str(path)], Options(task), tokens, count)
    return out.getvalue()


def test_pairs(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{\n" + rows(*(pair([user(f"Who{n}?")], assistant("A"), assistant("B\x1b")) for n in range(3))))
    text = shown(path, TokenChecks.of(byte_level()), 2)
    assert text.startswith("prompt  ⟦trained⟧  ⟨ignored⟩")
    assert f"{path}:2" in text
    assert f"{path}:3" in text
    assert f"{path}:4" not in text
    assert "<|im_start|>user⏎\nWho0?<|im_end|>⏎\n<|im_start|>assistant⏎\n⟦A<|im_end|>⏎\n⟧" in text
    assert "⟦B\\x1b<|im_end|>⏎\n⟧" in text
    assert re.search(r"prompt with chosen: \d+ prompt, \d+ trained", text)


def test_demonstrations(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(rows({"messages": [user("a"), assistant("b"), user("c"), assistant("d")]}))
    text = shown(path, TokenChecks.of(byte_level()), 1, "sft")
    assert "assistant⏎\n⟦b<|im_end|>⏎\n⟧⟨<|im_start|>user⏎\nc<|im_end|>" in text


def test_rows_that_have_no_tokens_say_why(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(rows(pair([system("x"), user("a")], assistant("b"), assistant("c"))))
    assert "only user and assistant here" in shown(path, TokenChecks.of(metaspace()), 5)


def test_colours_instead_of_marks() -> None:
    text = marked_text([("a", "prompt"), ("b", "trained"), ("c", "trained"), ("d", "ignored")], in_colour=True)
    assert text.plain == "abcd"
    assert [(span.start, span.end, span.style) for span in text.spans] == [
        (0, 1, "cyan"),
        (1, 3, "bold green"),
        (3, 4, "dim"),
    ]
