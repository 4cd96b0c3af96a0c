"""Several answers to one prompt, and the pairs that are made of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from dpolish.errors import ConfigError
from dpolish.records import NO_ARGUMENTS, PreferencePair, Prompt, Response, TemplateArguments
from dpolish.registry import did_you_mean

TIE = "a tie: neither answer is better"
ALONE = "an answer alone, with nothing to compare it to"
ONE_SIDED = "only good or only bad answers to this prompt"
NOT_NEEDED = "an answer that model.data.pairs puts into no pair"
NOTHING_TRAINED = "no turn to train on"
SKIP_REASONS = (TIE, ALONE, ONE_SIDED, NOT_NEEDED, NOTHING_TRAINED)
"""Why a row, or an answer of it, gives no record by its nature."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row, or an answer of it, that by its nature gives no record."""

    where: str
    reason: str
    """One of `SKIP_REASONS`."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of several answers to a prompt."""

    answer: Response
    score: float
    """The higher the better; equal ones are ties."""
    reward: float | None
    """Its ground-truth reward, where the score is one."""
    where: str


@dataclass(frozen=True, slots=True)
class Candidates:
    """The answers to one prompt, in file order."""

    prompt: Prompt
    answers: tuple[Candidate, ...]
    labelled: bool
    """Whether the scores are mere labels, good or bad: that two answers have the same one is no tie then."""
    arguments: TemplateArguments = NO_ARGUMENTS


def best_vs_worst(answers: Sequence[Candidate]) -> list[tuple[int, int]]:
    """One pair: the best answer and the worst; of equal ones the first counts."""
    indices = range(len(answers))
    best = max(indices, key=lambda index: answers[index].score)
    worst = min(indices, key=lambda index: answers[index].score)
    return [(best, worst if worst != best else 1)]


def best_vs_rest(answers: Sequence[Candidate]) -> list[tuple[int, int]]:
    """The best answer with every other one, in file order."""
    ((best, _),) = best_vs_worst(answers)
    return [(best, index) for index in range(len(answers)) if index != best]


def adjacent(answers: Sequence[Candidate]) -> list[tuple[int, int]]:
    """Each answer with the next worse one; equal ones stand in file order."""
    return list(pairwise(sorted(range(len(answers)), key=lambda index: -answers[index].score)))


def every_pair(answers: Sequence[Candidate]) -> list[tuple[int, int]]:
    """Every two answers, in file order."""
    return list(combinations(range(len(answers)), 2))


_PAIRINGS: dict[str, Callable[[Sequence[Candidate]], list[tuple[int, int]]]] = {
    "best_vs_worst": best_vs_worst,
    "best_vs_rest": best_vs_rest,
    "adjacent": adjacent,
    "all": every_pair,
}
PAIRINGS = tuple(_PAIRINGS)
"""The ways to make pairs out of several answers."""


def check_pairing(name: str) -> None:
    """Raise a ConfigError unless there is such a way to make pairs."""
    if name not in _PAIRINGS:
        raise ConfigError(f"unknown pairing {name!r}.{did_you_mean(name, PAIRINGS)} Known: {', '.join(PAIRINGS)}.")


def pair_up(candidates: Candidates, pairing: str, *, rows: bool) -> Iterator[PreferencePair | Skipped]:
    """The pairs of one prompt's answers. A tie makes none; it stands where the later of the two does.

    `rows` says that each answer is a row of its own, so that one which is in no pair and no tie is skipped by itself.
    """
    answers = candidates.answers
    if len(answers) == 1:
        yield Skipped(answers[0].where, ALONE)
        return
    met: set[int] = set()
    for first, second in _PAIRINGS[pairing](answers):
        better, worse = (first, second) if answers[first].score > answers[second].score else (second, first)
        if answers[better].score == answers[worse].score:
            if candidates.labelled:
                continue
            yield Skipped(answers[max(first, second)].where, TIE)
        else:
            yield _pair(candidates, answers[better], answers[worse], answers[min(first, second)].where)
        met |= {first, second}
    if rows:
        reason = NOT_NEEDED if met else ONE_SIDED
        yield from (Skipped(answer.where, reason) for index, answer in enumerate(answers) if index not in met)


def _pair(candidates: Candidates, better: Candidate, worse: Candidate, where: str) -> PreferencePair:
    return PreferencePair(
        candidates.prompt,
        better.answer,
        worse.answer,
        better.reward,
        worse.reward,
        where,
        candidates.arguments,
    )
