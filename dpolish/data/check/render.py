"""The report for people: a verdict first, then what was found, then numbers. 80 columns, and nothing a terminal obeys.

Text that comes from data files is printed with its control characters and direction marks escaped.
"""

from collections.abc import Iterator
from textwrap import wrap

from dpolish.data.check.findings import SHOWN_PLACES, Finding, Severity
from dpolish.data.check.report import Report
from dpolish.data.check.statistics import Lengths, Statistics, Truncation

Line = tuple[str, str]
"""A style of rich's, which may be empty, and a line."""

WIDTH = 80

_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
_BAR = 30


def lines(report: Report) -> Iterator[Line]:
    """The whole report."""
    yield _verdict(report)
    yield from _files(report)
    for severity in Severity:
        for finding in report.findings:
            if finding.severity is severity:
                yield "", ""
                yield from _finding(finding)
    yield from _numbers(report.statistics)
    yield from _fixed(report)


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would obey or not show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def _verdict(report: Report) -> Line:
    errors, warnings, notes = (report.count(severity) for severity in Severity)
    said = [_number(count, word) for count, word in ((errors, "error"), (warnings, "warning")) if count]
    said += [_number(notes, "note")] if notes else []
    found = ", ".join(said) or "nothing found"
    if errors:
        return _STYLES[Severity.ERROR], f"Training would refuse this data: {found}."
    if warnings:
        return _STYLES[Severity.WARNING], f"Training would run, and these want a look: {found}."
    return "bold green", f"Nothing stands in the way of training: {found}."


def _files(report: Report) -> Iterator[Line]:
    noun = "pair" if report.task == "dpo" else "demonstration"
    for file in report.files:
        shape = f"read as {file.format}" if file.format else "no shape recognised"
        gave = f"{_number(file.rows, 'row')}, {_number(file.records, noun)}, {file.kept:,} kept"
        yield "", f"  {printable(file.path)} ({file.split}): {shape}"
        yield "dim", f"    {gave}"


def _finding(finding: Finding) -> Iterator[Line]:
    yield _STYLES[finding.severity], f"{finding.severity} {finding.kind}: {finding.count:,}"
    yield from (
        ("", line) for line in wrap(printable(finding.message), WIDTH, initial_indent="  ", subsequent_indent="  ")
    )
    if finding.remedy:
        text = wrap(printable(finding.remedy), WIDTH, initial_indent="  → ", subsequent_indent="    ")
        yield from (("", line) for line in text)
    for place, detail in zip(finding.places, finding.details, strict=True):
        yield "bold", f"    {printable(place)}"
        said = wrap(printable(detail), WIDTH, initial_indent="      ", subsequent_indent="      ", max_lines=6)
        yield from (("dim", line) for line in said)
    if finding.count > SHOWN_PLACES:
        yield "dim", f"    … and {finding.count - len(finding.places):,} more"


def _numbers(statistics: Statistics) -> Iterator[Line]:
    if not statistics.lengths:
        return
    yield "", ""
    yield "bold", f"Lengths in {statistics.unit}"
    yield "", f"  {'':10}{'mean':>9}{'least':>8}{'10 %':>8}{'median':>8}{'90 %':>8}{'99 %':>8}{'most':>8}"
    for part, lengths in statistics.lengths.items():
        yield "", f"  {part:10}{_spread(lengths)}"
    for part, lengths in statistics.lengths.items():
        yield "", ""
        yield from _histogram(part, lengths)
    yield from _bias(statistics)
    yield from _margins(statistics)
    yield from _truncation(statistics)
    yield from _savings(statistics)


def _spread(lengths: Lengths) -> str:
    spread, at = lengths.spread, lengths.spread.quantiles
    whole = (spread.least, at["0.1"], at["0.5"], at["0.9"], at["0.99"], spread.greatest)
    return f"{spread.mean:>9,.1f}" + "".join(f"{value:>8,.0f}" for value in whole)


def _histogram(part: str, lengths: Lengths) -> Iterator[Line]:
    most = max(one.count for one in lengths.histogram)
    yield "", f"  {part}"
    filled = [index for index, one in enumerate(lengths.histogram) if one.count]
    for one in lengths.histogram[filled[0] : filled[-1] + 1]:
        bar = "█" * round(_BAR * one.count / most) or ("▏" if one.count else "")
        yield "", f"    {f'{one.least:,}–{one.greatest:,}':>17} {one.count:>9,} {bar}"


def _bias(statistics: Statistics) -> Iterator[Line]:
    bias = statistics.length_bias
    if bias is None:
        return
    unequal = bias.longer_chosen + bias.shorter_chosen
    share = f"{bias.longer_chosen / unequal:.1%} of {unequal:,}" if unequal else "none"
    yield "", ""
    yield "bold", "Length and choice"
    yield "", f"  the longer answer is the chosen one   {share} pairs of unequal length"
    yield "", f"  chosen less rejected, mean            {bias.mean_difference:+,.1f} {statistics.unit}"
    yield "", f"  “the longer one is better”            right in {bias.accuracy_of_longer:.1%}"
    yield "", f"  “the shorter one is better”           right in {bias.accuracy_of_shorter:.1%}"
    yield "", f"  AUC of length                         {bias.auc:.3f} (0.5: length says nothing)"


def _margins(statistics: Statistics) -> Iterator[Line]:
    margins = statistics.margins
    if margins is None:
        return
    spread = margins.spread
    yield "", ""
    yield "bold", f"Reward margins (chosen less rejected) of {_number(spread.count, 'pair')}"
    yield "", f"  mean {spread.mean:.4g}, from {spread.least:g} to {spread.greatest:g}"
    quantiles = ", ".join(f"{float(share):.0%}: {value:.4g}" for share, value in spread.quantiles.items())
    yield from (("", line) for line in wrap(quantiles, WIDTH, initial_indent="  ", subsequent_indent="  "))
    for name, count in (("negative", margins.negative), ("zero", margins.zero)):
        yield "", f"  {name:10}{count:>9,} ({count / spread.count:.1%})"


def _truncation(statistics: Statistics) -> Iterator[Line]:
    if not statistics.truncation:
        return
    pairs = "rejected" in statistics.lengths
    yield "", ""
    yield "bold", "Rows that a sequence length would cost"
    names = ("chosen cut", "rejected cut", "dropped", "unanswered") if pairs else ("dropped", "unanswered")
    yield "", f"  {'length':>8}" + "".join(f"{name:>14}" for name in names)
    for row in statistics.truncation:
        yield "", f"  {row.length:>8,}" + "".join(f"{count:>14,}" for count in _counts(row, pairs))


def _counts(row: Truncation, pairs: bool) -> tuple[int, ...]:
    return (row.chosen, row.rejected, row.either, row.unanswered) if pairs else (row.either, row.unanswered)


def _savings(statistics: Statistics) -> Iterator[Line]:
    savings = statistics.savings
    if savings is None or not savings.padded:
        return
    yield "", ""
    yield "bold", "Tokens to compute"
    counts = {"padded": savings.padded, "packed": savings.packed, "prompts shared": savings.shared}
    if savings.alike < savings.shared:
        counts["beginnings too"] = savings.alike
    for name, count in counts.items():
        saved = f"  {1 - count / savings.padded:.0%} less" if count < savings.padded else ""
        yield "", f"  {name:16}{count:>16,}{saved}"


def _fixed(report: Report) -> Iterator[Line]:
    fixed = report.fixed
    if fixed is None:
        return
    noun = "pair" if report.task == "dpo" else "demonstration"
    yield "", ""
    yield (
        "bold",
        f"{printable(fixed.path)}: {_number(fixed.kept, noun)} written, {sum(fixed.dropped.values()):,} left out",
    )
    for kind, count in fixed.dropped.items():
        yield "", f"  {kind:24}{count:>9,}"
    yield "dim", f"  each with its place and reason: {printable(fixed.dropped_path)}"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
