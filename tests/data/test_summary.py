"""What a user reads of the rows."""

from dpolish.data.kinds import PairCounts
from dpolish.data.summary import (
    BOUNDARY_MERGES,
    DROP_REASONS,
    EQUAL_ANSWERS,
    OVERLONG,
    REMARKS,
    DataSummary,
    FileSummary,
    Tally,
)

TOKENS = PairCounts(prompt=1000, chosen=400, rejected=300, longest=70, shared=1700, padded=2890)


def test_the_summary_reads_well() -> None:
    summary = DataSummary(
        (FileSummary("a.jsonl", "native", 1, 1), FileSummary("b.json", "alpaca", 1200, 1193)),
        {OVERLONG: Tally(1, ("b.json:9",)), EQUAL_ANSWERS: Tally(6, ("b.json:2", "b.json:5", "c.json:1"))},
        {BOUNDARY_MERGES: Tally(1, ("a.jsonl:1",))},
        ("id", "source"),
        TOKENS,
    )
    assert (summary.rows_read, summary.rows_kept, summary.rows_dropped) == (1201, 1194, 7)
    assert summary.lines() == [
        "a.jsonl: read as native, 1 row",
        "b.json: read as alpaca, 1,200 rows",
        "kept 1,194 rows of 1,201, dropped 7",
        "  dropped, equal answers: 6 (b.json:2, :5, c.json:1, …)",
        "  dropped, longer than seq_length: 1 (b.json:9)",
        "  the tokenizer joins the end of the prompt with the answer: the joint token counts as answer: 1 (a.jsonl:1)",
        "  columns not used: id, source",
        "tokens: prompts 1,000, chosen 400, rejected 300; longest row 70",
        "  1,700 to compute with shared prompts, 2,890 padded (1.70 times as many)",
    ]


def test_every_reason_and_remark_is_printed() -> None:
    tally = Tally(2, ("x.jsonl:1", "x.jsonl:4"))
    summary = DataSummary((), dict.fromkeys(DROP_REASONS, tally), dict.fromkeys(REMARKS, tally), (), TOKENS)
    text = "\n".join(summary.lines())
    assert all(f"{name}: 2 (x.jsonl:1, :4)" in text for name in (*DROP_REASONS, *REMARKS))
