"""The tutorial's whole road on data made on the spot: SFT in NeMo's extra_id template, DPO in the same, generation.

The models are tiny and learn their rows by heart: what they then write shows what they were trained on, to the token.
"""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import dpolish
from dpolish.config.schema import DpoConfig, RunConfig, SftConfig
from dpolish.data.templates import load_template
from dpolish.training.generate import answers
from tests import tiny

FACTS = {
    "which year": "1215",
    "the painter": "of a famous",
    "helpful": "which was",
    "signed the year": "a 1215 of the year",
}
EXTRA_ID = "model.data.chat_template=extra_id"
LEARNING = (
    "trainer.accelerator=cpu",
    "model.optim.sched.name=Constant",
    "model.optim.sched.warmup_steps=0",
    "model.optim.weight_decay=0",
)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chats() -> list[tiny.Row]:
    return [{"messages": [turn("user", asked), turn("assistant", told)]} for asked, told in FACTS.items()]


def pairs() -> list[tiny.Row]:
    return [
        {
            "prompt": [turn("user", asked)],
            "chosen_response": turn("assistant", told),
            "rejected_response": turn("assistant", "refuse"),
        }
        for asked, told in FACTS.items()
    ]


def templated(rows: list[tiny.Row]) -> list[tiny.Row]:
    """The same pairs as the tutorial writes them: strings in the template."""
    made: list[tiny.Row] = []
    for row, (asked, told) in zip(rows, FACTS.items(), strict=True):
        prompt = f"<extra_id_0>System\n\n<extra_id_1>User\n{asked}\n<extra_id_1>Assistant\n"
        answers = {"chosen_response": f"{told}\n<extra_id_1>", "rejected_response": "refuse\n<extra_id_1>"}
        made.append({**row, "prompt": prompt, **answers})
    return made


def train(
    root: type[RunConfig], model: Path, rows: Path, output: Path, *overrides: str
) -> tuple[dpolish.RunResult, list[str]]:
    """The result, and what the run said."""
    said: list[str] = []
    composed = dpolish.compose(
        root=root,
        overrides=[*LEARNING, *overrides],
        model=str(model),
        train=[str(rows)],
        output=str(output),
        environ={},
    )
    return dpolish.train(composed, say=said.append, sinks=lambda _: ()), said


@pytest.fixture(scope="module")
def tuned(setup: tiny.Setup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the facts by heart, in the extra_id template."""
    folder = tmp_path_factory.mktemp("road")
    rows = tiny.write_rows(folder / "chats.jsonl", chats())
    overrides = ("trainer.sft.max_epochs=60", "model.data.train_ds.global_batch_size=4", "model.optim.lr=1e-2")
    return train(SftConfig, setup.model, rows, folder / "sft", EXTRA_ID, *overrides)[0].model


def warnings(said: list[str]) -> list[str]:
    return [line for line in said if line.startswith("WARNING")]


def test_sft_then_dpo_then_generation_that_stops(tuned: Path, tmp_path: Path) -> None:
    assert answers(tuned, list(FACTS)) == list(FACTS.values())
    rows = tiny.write_rows(tmp_path / "pairs.jsonl", pairs())
    few = ("model.global_batch_size=4", "trainer.dpo.max_epochs=2", "model.optim.lr=1e-4")
    polished, said = train(DpoConfig, tuned, rows, tmp_path / "dpo", *few)
    assert warnings(said) == []
    assert answers(polished.model, list(FACTS)) == list(FACTS.values())
    assert load_template(polished.model) == load_template(tuned)


def test_what_is_learned_ends_with_the_turn_start_as_in_nemo(tuned: Path) -> None:
    """Plain transformers, no stop string: the answer, the end of the turn, and the beginning of the next one."""
    tokenizer, model = AutoTokenizer.from_pretrained(tuned), AutoModelForCausalLM.from_pretrained(tuned)
    prompt = "<extra_id_0>System\n\n<extra_id_1>User\nwhich year\n<extra_id_1>Assistant\n"
    assert prompt == tokenizer.apply_chat_template(
        [turn("user", "which year")], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(prompt, return_tensors="pt")
    answer = tokenizer("1215\n<extra_id_1>")["input_ids"]
    out = model.generate(**ids, max_new_tokens=len(answer), do_sample=False)
    assert tokenizer.decode(out[0, ids["input_ids"].shape[1] :]) == "1215\n<extra_id_1>"


def test_dpo_in_the_templates_own_strings(tuned: Path, tmp_path: Path) -> None:
    rows = tiny.write_rows(tmp_path / "pairs.jsonl", templated(pairs()))
    polished, said = train(DpoConfig, tuned, rows, tmp_path / "dpo", "model.optim.lr=1e-4")
    assert warnings(said) == []
    assert load_template(polished.model) == load_template(tuned)


def test_strings_in_no_template_are_warned_of(tuned: Path, tmp_path: Path) -> None:
    plain: list[tiny.Row] = [
        {"prompt": asked, "chosen_response": told, "rejected_response": "refuse"} for asked, told in FACTS.items()
    ]
    said = train(DpoConfig, tuned, tiny.write_rows(tmp_path / "pairs.jsonl", plain), tmp_path / "dpo")[1]
    assert any("4 of 4 rows are not written in the chat template" in line for line in warnings(said))


def test_another_template_is_warned_of_loudly_with_both(tuned: Path, tmp_path: Path) -> None:
    rows = tiny.write_rows(tmp_path / "pairs.jsonl", pairs())
    said = train(DpoConfig, tuned, rows, tmp_path / "dpo", "model.data.chat_template=nemo")[1]
    (warning,) = warnings(said)
    assert "NOT THE ONE THAT THE MODEL WAS FINE-TUNED WITH" in warning
    assert "extra_id" in warning
    assert "nemo" in warning


def test_nemos_chat_of_a_model_without_a_template(setup: tiny.Setup, tmp_path: Path) -> None:
    """`model.data.chat=True` on a base model: NeMo-Aligner's own tokens, as there."""
    base = tmp_path / "base"
    base.mkdir()
    for file in setup.model.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    (base / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((base / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    rows = [
        {
            "system": "",
            "mask": "User",
            "conversations": [{"from": "User", "value": asked}, {"from": "Assistant", "value": told}],
        }
        for asked, told in FACTS.items()
    ]
    path = tiny.write_rows(tmp_path / "chats.jsonl", rows)
    overrides = ("model.data.chat=True", "trainer.sft.max_epochs=60", "model.data.train_ds.global_batch_size=4")
    result, _ = train(SftConfig, base, path, tmp_path / "sft", *overrides, "model.optim.lr=1e-2")
    record = load_template(result.model)
    assert record is not None
    assert record.name == "nemo"
    assert answers(result.model, list(FACTS)) == list(FACTS.values())


def test_prompt_response_rows_are_asked_in_their_own_template(setup: tiny.Setup, tmp_path: Path) -> None:
    rows = [{"input": asked, "output": told} for asked, told in FACTS.items()]
    path = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    overrides = ("trainer.sft.max_epochs=60", "model.data.train_ds.global_batch_size=4", "model.optim.lr=1e-2")
    template = "model.data.train_ds.prompt_template='Q: {input}\\nA: {output}'"
    result, _ = train(SftConfig, setup.model, path, tmp_path / "sft", *overrides, template)
    assert answers(result.model, list(FACTS)) == list(FACTS.values())
    wrong: list[tiny.Row] = [
        {"prompt": asked, "chosen_response": told, "rejected_response": "refuse"} for asked, told in FACTS.items()
    ]
    said = train(DpoConfig, result.model, tiny.write_rows(tmp_path / "pairs.jsonl", wrong), tmp_path / "dpo")[1]
    assert any("fine-tuned with prompt_template" in line for line in warnings(said))
