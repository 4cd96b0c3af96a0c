"""The demonstration's pairs: deterministic, in the native shape, short, and honest about what is held out."""

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from dpolish.demo.facts import TOPICS
from dpolish.demo.pairs import DEMO_PROMPTS, make_pairs, write_pairs
from dpolish.records import PreferencePair


def _question(pair: PreferencePair) -> str:
    assert not isinstance(pair.prompt, str)
    (message,) = pair.prompt
    assert message.role == "user"
    return message.content


def _answers(pair: PreferencePair) -> tuple[str, str]:
    assert not isinstance(pair.chosen, str)
    assert not isinstance(pair.rejected, str)
    (chosen,), (rejected,) = pair.chosen, pair.rejected
    assert chosen.role == rejected.role == "assistant"
    return chosen.content, rejected.content


def test_same_seed_same_pairs_and_another_seed_others() -> None:
    assert make_pairs(3) == make_pairs(3)
    assert make_pairs(3) != make_pairs(4)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_held_out_questions_and_answers_never_occur_in_training(seed: int) -> None:
    train, held_out = make_pairs(seed)
    assert (len(train), len(held_out)) == (244, 40)
    questions = {_question(pair) for pair in train}
    assert len(questions) == len(train)
    assert questions.isdisjoint(_question(pair) for pair in held_out)
    assert questions.isdisjoint(DEMO_PROMPTS)
    assert {_answers(pair)[0] for pair in train}.isdisjoint(_answers(pair)[0] for pair in held_out)


def test_held_out_subjects_are_not_trained_and_some_topics_are_unseen() -> None:
    trained = {subject for topic in TOPICS for subject, _ in topic.trained}
    held_out = [subject for topic in TOPICS for subject, _ in topic.held_out]
    assert trained.isdisjoint(held_out)
    assert len(set(held_out)) == len(held_out)
    assert {topic.name for topic in TOPICS if not topic.trained} == {"jobs", "colors"}
    asked = {
        question.format(subject) for topic in TOPICS for subject, _ in topic.held_out for question in topic.questions
    }
    assert set(DEMO_PROMPTS) <= asked


def test_rejected_says_the_same_and_more() -> None:
    facts = [(topic, *fact) for topic in TOPICS for fact in (*topic.trained, *topic.held_out)]
    answers = {topic.plain.format(subject, answer).lower(): answer for topic, subject, answer in facts}
    for pair in chain(*make_pairs()):
        chosen, rejected = _answers(pair)
        assert answers[chosen.lower()].lower() in rejected.lower()
        assert len(rejected) >= len(chosen) + 20
        assert chosen[0].isupper() or chosen[0].isdigit()
        assert chosen.endswith(".")


def test_pairs_are_short() -> None:
    for pair in chain(*make_pairs()):
        chosen, rejected = _answers(pair)
        assert len(_question(pair)) <= 60
        assert len(chosen) <= 70
        assert len(rejected) <= 260


def test_written_rows_are_native_rows(tmp_path: Path) -> None:
    train, held_out = make_pairs(5)
    for path, pairs in zip(write_pairs(tmp_path / "data", 5), (train, held_out), strict=True):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert rows == [
            {
                "prompt": [{"role": "user", "content": _question(pair)}],
                "chosen_response": {"role": "assistant", "content": _answers(pair)[0]},
                "rejected_response": {"role": "assistant", "content": _answers(pair)[1]},
            }
            for pair in pairs
        ]


def test_needs_no_torch() -> None:
    code = "import sys, dpolish.demo.pairs; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
