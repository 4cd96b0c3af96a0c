import json
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer

from dpolish.errors import ModelError
from dpolish.nemo.tokenizers.reading import import_tokenizer
from dpolish.nemo.tokenizers.spm_model import parse_model
from dpolish.nemo.tokenizers.writing import ExportedTokenizer, NemoTokenizer, export_tokenizer, tokenizer_tokens
from tests.data.small_tokenizers import byte_level
from tests.nemo.spm import LINES, write
from tests.nemo.test_tokenizers_gpt2 import FILES
from tests.nemo.test_tokenizers_reading import GPT2, SPM, archive, plain

SIZE = len(parse_model(plain(), "a").pieces)
FIXTURE = Path(__file__).parents[3] / "shared" / "fixtures" / "nemo" / "hf" / "tiny_llama_gqa"


def imported_again(exported: ExportedTokenizer, folder: Path) -> Path:
    tokenizer = exported.tokenizer
    found = import_tokenizer(
        tokenizer.block, lambda name: tokenizer.artifacts[name.removeprefix("nemo:")], folder, rows=10_000
    )
    assert found.size == exported.size
    return folder


def ids(folder: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    return [tokenizer(text).input_ids for text in LINES]


def test_an_unchanged_tokenizer_goes_back_as_it_came(tmp_path: Path) -> None:
    original = NemoTokenizer({**SPM, "sentencepiece_legacy": True, "model": "nemo:0_x.model"}, {"0_x.model": plain()})
    import_tokenizer(original.block, archive(x=plain()), tmp_path, rows=1024)
    exported = export_tokenizer(tmp_path, original=original)
    assert exported.tokenizer is original
    assert (exported.size, exported.warnings) == (tokenizer_tokens(tmp_path), ())


def test_a_changed_one_does_not(tmp_path: Path) -> None:
    original = NemoTokenizer({**SPM, "model": "nemo:0_x.model"}, {"0_x.model": plain()})
    byte_level().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="Give the hub id"):
        export_tokenizer(tmp_path, original=original)


def test_a_sentencepiece_model_becomes_the_artifact(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer.model", plain())
    import_tokenizer(SPM, archive(a=plain()), tmp_path, rows=1024)
    exported = export_tokenizer(tmp_path)
    ((name, content),) = exported.tokenizer.artifacts.items()
    assert (exported.tokenizer.block["model"], content, exported.warnings) == (f"nemo:{name}", plain(), ())
    assert ids(imported_again(exported, tmp_path / "again")) == ids(tmp_path)


def test_tokens_beyond_it_become_user_defined_pieces(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer.model", plain())
    decoder = {str(SIZE): {"content": "<|im_end|>"}, "0": {"content": "<unk>"}}
    config = {"added_tokens_decoder": decoder, "eos_token": {"content": "<|im_end|>"}}
    write(tmp_path, "tokenizer_config.json", json.dumps(config).encode())
    write(tmp_path, "added_tokens.json", json.dumps({"<|im_start|>": SIZE + 1}).encode())
    exported = export_tokenizer(tmp_path)
    (content,) = exported.tokenizer.artifacts.values()
    oracle = sentencepiece.SentencePieceProcessor(model_proto=content)
    assert oracle.encode("Hi<|im_start|><|im_end|>")[-2:] == [SIZE + 1, SIZE]
    assert exported.size == SIZE + 2
    assert [warning.split(";")[0] for warning in exported.warnings] == [
        "2 tokens that sentencepiece does not have (<|im_end|>, <|im_start|>) go into its model as user-defined pieces",
        "the tokenizer ends texts with '<|im_end|>'",
    ]


@pytest.mark.parametrize("tokens", [{"<gap>": SIZE + 1}, {"<other>": 1}, {"<extra_id_0>": SIZE}])
def test_tokens_that_do_not_fit_need_a_name(tmp_path: Path, tokens: dict[str, int]) -> None:
    write(tmp_path, "tokenizer.model", plain())
    write(tmp_path, "added_tokens.json", json.dumps(tokens).encode())
    with pytest.raises(ModelError, match=r"its tokens are not those of its tokenizer\.model"):
        export_tokenizer(tmp_path)
    exported = export_tokenizer(tmp_path, hub_name="org/name")
    assert (exported.tokenizer.block["library"], exported.tokenizer.block["type"]) == ("huggingface", "org/name")
    assert "NeMo will load org/name" in exported.warnings[0]


def test_gpt2_becomes_its_two_files(tmp_path: Path) -> None:
    import_tokenizer(GPT2, archive(v=FILES[0], m=FILES[1]), tmp_path, rows=1024)
    exported = export_tokenizer(tmp_path)
    assert (exported.tokenizer.block["library"], exported.tokenizer.block["type"]) == ("megatron", "GPT2BPETokenizer")
    assert FILES[1] in exported.tokenizer.artifacts.values()
    assert ids(imported_again(exported, tmp_path / "again")) == ids(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        export_tokenizer(tmp_path)
    write(tmp_path, "tokenizer.json", b"{")
    with pytest.raises(ModelError, match=r"tokenizer\.json: cannot be read"):
        export_tokenizer(tmp_path)


@pytest.mark.skipif(not FIXTURE.is_dir(), reason="needs the real model beside the checkout, ../shared/fixtures/nemo")
def test_a_real_llama_folder_gives_its_model() -> None:
    exported = export_tokenizer(FIXTURE)
    assert list(exported.tokenizer.artifacts.values()) == [(FIXTURE / "tokenizer.model").read_bytes()]
    assert (exported.size, exported.warnings) == (500, ())
