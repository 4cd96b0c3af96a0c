import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dpolish.data.templates import choose_template
from dpolish.data.tokenize import Tokenization
from dpolish.errors import DataError, ModelError
from dpolish.nemo.tokenizers.archived import tokenizer_size
from dpolish.nemo.tokenizers.gpt2 import END
from dpolish.nemo.tokenizers.reading import import_tokenizer, require_same_ids
from dpolish.records import Message, PreferencePair
from tests.data.small_tokenizers import byte_level
from tests.nemo.spm import LINES, SYMBOLS, nemo_like, train
from tests.nemo.test_tokenizers_gpt2 import FILES

SPM = {"library": "sentencepiece", "type": None, "model": "nemo:0_a.model", "sentencepiece_legacy": False}
GPT2 = {"library": "megatron", "type": "GPT2BPETokenizer", "vocab_file": "nemo:v", "merge_file": "nemo:m"}
TEXTS = [*LINES, "<extra_id_0>System\n\n<extra_id_1>User\nHi</s>", "<s>", ""]


def plain() -> bytes:
    settings = {"normalization_rule_name": "identity", "byte_fallback": True}
    return train("bpe", user_defined_symbols=",".join(SYMBOLS), pad_id=3, **settings)


def archive(**files: bytes) -> Callable[[str], bytes]:
    return lambda name: files[name.removeprefix("nemo:").split("_")[-1].removesuffix(".model")]


def loaded(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(folder))


def test_a_sentencepiece_model_becomes_a_folder_that_transformers_loads(tmp_path: Path) -> None:
    found = import_tokenizer(SPM, archive(a=nemo_like()), tmp_path, rows=1024)
    oracle, tokenizer = sentencepiece.SentencePieceProcessor(model_proto=nemo_like()), loaded(tmp_path)
    assert [tokenizer(text).input_ids for text in TEXTS] == [oracle.encode(text) for text in TEXTS]
    assert (found.kind, found.size, found.warnings) == ("sentencepiece", oracle.vocab_size(), ())
    assert found.ids == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    tokenizer.save_pretrained(tmp_path / "again")
    assert [loaded(tmp_path / "again")(text).input_ids for text in TEXTS] == [oracle.encode(text) for text in TEXTS]


def test_training_sees_the_ids_that_nemo_saw(tmp_path: Path) -> None:
    import_tokenizer(SPM, archive(a=plain()), tmp_path, rows=1024)
    oracle = sentencepiece.SentencePieceProcessor(model_proto=plain())
    prompt, chosen = "<extra_id_0>System\n\n<extra_id_1>User\nWhy?\n<extra_id_1>Assistant\n", "Because it rains."
    rules = Tokenization.of(loaded(tmp_path), append_eod=True, add_bos=True)
    (pair,) = rules.encode([PreferencePair(prompt, chosen, "So.", None, None, "x:1")])
    assert not isinstance(pair, DataError)
    assert pair.answers[0] == [1, *oracle.encode(prompt + chosen), 2]


@pytest.mark.parametrize("architecture", ["stablelm", "nemotron", "llama", "mistral", "gpt_neox", "starcoder2", "gpt2"])
def test_architectures_do_not_bring_tokenizers_of_their_own(tmp_path: Path, architecture: str) -> None:
    import_tokenizer(SPM, archive(a=plain()), tmp_path, rows=1024)
    special = {"bos_token_id": 1, "eos_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": architecture, "vocab_size": 1024, **special}))
    require_same_ids(tmp_path, "x.nemo")


def test_an_architecture_that_does_is_found(tmp_path: Path) -> None:
    import_tokenizer(SPM, archive(a=plain()), tmp_path, rows=1024)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": 1024}))
    with pytest.raises(ModelError, match="Qwen2Tokenizer, which cuts texts in another way"):
        require_same_ids(tmp_path, "x.nemo")


def test_legacy_mode_cuts_texts_at_added_tokens(tmp_path: Path) -> None:
    block = {**SPM, "sentencepiece_legacy": True, "additional_special_tokens": ["<new>", "</s>", "<other>", "<new>"]}
    found = import_tokenizer(block, archive(a=plain()), tmp_path, rows=1024)
    oracle, tokenizer = sentencepiece.SentencePieceProcessor(model_proto=plain()), loaded(tmp_path)
    size = oracle.vocab_size()
    assert (found.size, tokenizer_size(block, archive(a=plain()))) == (size + 2, size + 2)
    expected = [*oracle.encode("a "), size, *oracle.encode(" b"), size + 1, size, *oracle.encode("c</s>")]
    assert tokenizer("a <new> b<other><new>c</s>").input_ids == expected


def test_without_the_key_nemo_is_in_legacy_mode(tmp_path: Path) -> None:
    block = {"library": "sentencepiece", "model": "a.model", "additional_special_tokens": ["<new>"]}
    assert import_tokenizer(block, archive(a=plain()), tmp_path, rows=1024).size == len(loaded(tmp_path))
    assert loaded(tmp_path).convert_tokens_to_ids("<new>") == len(loaded(tmp_path)) - 1


def test_gpt2s_files_become_a_folder(tmp_path: Path) -> None:
    block = {**GPT2, "additional_special_tokens": ["<new>"]}
    found = import_tokenizer(block, archive(v=FILES[0], m=FILES[1]), tmp_path, rows=1024)
    tokenizer = loaded(tmp_path)
    end = json.loads(FILES[0])[END]
    assert found.kind == "gpt2"
    assert found.ids == {"bos_token_id": end, "eos_token_id": end, "pad_token_id": None}
    assert tokenizer(f"a<new>{END}").input_ids[1:] == [found.size - 1, end]
    assert tokenizer.decode(tokenizer("größer 日本\n").input_ids) == "größer 日本\n"


def test_a_named_tokenizer_comes_from_the_users_folder(tmp_path: Path) -> None:
    byte_level().save_pretrained(tmp_path / "given")
    block = {"library": "huggingface", "type": "org/name", "special_tokens": {"pad_token": "<pad!>"}}
    found = import_tokenizer(block, archive(), tmp_path / "made", rows=10_000, folder=tmp_path / "given")
    before, after = loaded(tmp_path / "given"), loaded(tmp_path / "made")
    assert [after(text).input_ids for text in LINES] == [before(text).input_ids for text in LINES]
    assert (after.pad_token, found.ids["pad_token_id"], found.size) == ("<pad!>", len(before), len(before) + 1)
    assert tokenizer_size(block, archive()) is None
    with pytest.raises(ModelError, match=r"only the name of one: org/name\. Name a folder"):
        import_tokenizer(block, archive(), tmp_path, rows=10_000)


def test_a_users_folder_takes_the_place_of_the_archives_own(tmp_path: Path) -> None:
    byte_level().save_pretrained(tmp_path / "given")
    block = {"library": "tiktoken", "type": None}
    found = import_tokenizer(block, archive(), tmp_path / "made", rows=10_000, folder=tmp_path / "given")
    assert "that the ids agree is not checked" in found.warnings[0]
    with pytest.raises(ModelError, match="no such folder"):
        import_tokenizer(block, archive(), tmp_path / "made", rows=10_000, folder=tmp_path / "none")


def test_the_chat_template_is_the_models_own(tmp_path: Path) -> None:
    tokens = dict(zip(("system_turn_start", "turn_start", "label_start"), SYMBOLS, strict=True))
    data = {"chat": True, "chat_prompt_tokens": {**tokens, "end_of_turn": "\n", "end_of_name": "\n"}}
    import_tokenizer(SPM, archive(a=plain()), tmp_path / "chat", rows=1024, data=data)
    template = choose_template(loaded(tmp_path / "chat"))
    assert template is not None
    text = template.render([Message("user", "Hi")], generate=True)
    assert text == "<extra_id_0>System\n\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\n"
    import_tokenizer(SPM, archive(a=plain()), tmp_path / "text", rows=1024, data={**data, "chat": False})
    assert loaded(tmp_path / "text").chat_template is None


def test_a_unigram_model_and_one_without_an_end_are_warned_about(tmp_path: Path) -> None:
    model = train("unigram", eos_id=-1, normalization_rule_name="identity")
    found = import_tokenizer(SPM, archive(a=model), tmp_path, rows=1024)
    assert found.ids["eos_token_id"] is None
    assert [warning.split(":")[0] for warning in found.warnings] == [
        "the tokenizer is a unigram model",
        "the tokenizer has no end-of-sequence token",
    ]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ({}, "tokenizer.library is missing"),
        ({"library": 3}, "tokenizer.library is not a text"),
        ({"library": "tiktoken", "vocab_file": "nemo:v"}, "library tiktoken: no fast"),
        ({"library": "byte-level"}, "library byte-level: no fast"),
        ({"library": "megatron", "type": "BertWordPieceCase"}, r"megatron \(BertWordPieceCase\): no fast"),
        ({"library": "sentencepiece"}, "names no sentencepiece artifact"),
        ({**GPT2, "merge_file": None}, "would download GPT-2's"),
        ({**SPM, "additional_special_tokens": ["<new>"]}, "which NeMo refuses, too"),
        ({**SPM, "additional_special_tokens": "<new>"}, "not a list of texts"),
        ({**SPM, "special_tokens": ["<new>"]}, "not a mapping"),
        ({**SPM, "sentencepiece_legacy": True, "additional_special_tokens": ["<n", "<new>"]}, "never finds '<new>'"),
    ],
)
def test_what_cannot_be_imported_is_refused(tmp_path: Path, block: dict[str, object], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        import_tokenizer(block, archive(a=plain(), v=FILES[0], m=FILES[1]), tmp_path, rows=1024)


def test_more_tokens_than_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has \d+ tokens, and the model's embedding only 500 rows"):
        import_tokenizer(SPM, archive(a=plain()), tmp_path, rows=500)
