"""Small tokenizers of every kind that matters here, made on the spot."""

from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

SENTENCES = (
    "Which year was the Magna Carta signed? It was signed in 1215.",
    "Please give me the name of a famous painter. I refuse to answer this question.",
    "You are a helpful assistant. user system assistant",
    "Das Café öffnet um 9 Uhr, 東京は晴れです 🙂.",
)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}{{ raise_exception('only user and assistant here') }}"
    "{% endif %}{% endfor %}"
)


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's kind, with ChatML; it adds nothing to a string."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", unk_token="<|endoftext|>", model_max_length=32
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.add_tokens([AddedToken("<think>", normalized=False)])
    fast.chat_template = CHATML
    return fast


@cache
def metaspace() -> PreTrainedTokenizerFast:
    """SentencePiece's kind: blanks become a letter, put before the first word only; BOS in front; `[INST]` in text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer = _without_byte_tokens_added(tokenizer)
    tokenizer.post_processor = _around(tokenizer, "<s> $A")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = BRACKETS
    return fast


def _without_byte_tokens_added(tokenizer: Tokenizer) -> Tokenizer:
    """The same model with its byte tokens in the vocabulary alone.

    The trainer makes every special token an added one; a model of this kind does not.
    """
    plain = Tokenizer(tokenizer.model)
    plain.pre_tokenizer, plain.decoder = tokenizer.pre_tokenizer, tokenizer.decoder
    plain.add_special_tokens(["<unk>", "<s>", "</s>"])
    return plain


@cache
def words(pattern: str = "$A") -> PreTrainedTokenizerFast:
    """One id per word: `pattern` says what is put around a string, such as "<s> $A </s>"."""
    names = ["<unk>", "<s>", "</s>", "the", "cat", "sat", "on", "mat", "a", "dog", "ran", ".", "!"]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = _around(tokenizer, pattern)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = None
    return fast


MERGING_IDS = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "c": 4, "d": 5, "ab": 6, "abc": 7, " ": 8}


@cache
def merging(pattern: str = "$A") -> PreTrainedTokenizerFast:
    """Letters, of which `ab` and `abc` join, wherever the border between prompt and answer lies."""
    tokenizer = Tokenizer(models.BPE(MERGING_IDS, [("a", "b"), ("ab", "c")]))
    tokenizer.post_processor = _around(tokenizer, pattern)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for message in messages %}{{ message['content'] + '</s>' }}{% endfor %}"
    return fast


def _around(tokenizer: Tokenizer, pattern: str) -> processors.TemplateProcessing:
    special = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>") if token in pattern]
    return processors.TemplateProcessing(single=pattern, special_tokens=special)


@cache
def gpt2() -> PreTrainedTokenizerFast:
    """GPT-2's: byte-level, one special token for everything, no chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)


@cache
def unigram() -> PreTrainedTokenizerFast:
    """SentencePiece's unigram kind, as Gemma and T5 have it: byte fallback, BOS in front, `<extra_id_0>` and so on."""
    special = ["<unk>", "<s>", "</s>"]
    words = ["▁the", "▁was", "▁year", "▁is", "▁It", "It", "▁12", "15", "er", "ant", "as", "sist", "user", "\n"]
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [(name, 0.0) for name in special]
    vocabulary += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    vocabulary += [(piece, -3.0 - rank / 100) for rank, piece in enumerate([*words, "▁", *letters])]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = _around(tokenizer, "<s> $A")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    turns = ["<start_of_turn>", "<end_of_turn>", "<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]
    fast.add_special_tokens({"additional_special_tokens": turns})
    return fast


@cache
def llama3() -> PreTrainedTokenizerFast:
    """Llama 3's kind: byte-level with its own splits, many special tokens, BOS in front."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    splits = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(splits), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[*special, *(f"<|reserved_special_token_{number}|>" for number in range(8))],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    begin = [("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=begin)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


@cache
def across() -> PreTrainedTokenizerFast:
    """One that splits nowhere, so that it joins whatever often stands side by side: line breaks with words, for one."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<|end|>"],
        initial_alphabet=[chr(code) for code in (*range(9, 11), *range(32, 127))],
        show_progress=False,
    )
    tokenizer.decoder = decoders.Fuse()
    chats = ["assistant\nIt was 1215.\n<", "Assistant\nIt was", "[/INST] It was", "|>\nIt", ".\n<extra_id_1>User\nWh"]
    tokenizer.train_from_iterator([*SENTENCES, *chats * 4], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", unk_token="<unk>")


KINDS = {"byte_level": byte_level, "gpt2": gpt2, "unigram": unigram, "llama3": llama3, "across": across}
"""The kinds of the golden files."""


class Letters(PreTrainedTokenizer):
    """A slow tokenizer, in Python: one id per letter, BOS in front, the unknown id for anything beyond ASCII."""

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 - the library's own way

    def __init__(self) -> None:
        self._ids = {"<unk>": 0, "<s>": 1, "</s>": 2, **{chr(code): code for code in range(3, 128)}}
        super().__init__(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
        self.add_tokens([AddedToken("<think>", normalized=False)])
        self.chat_template = BRACKETS

    @property
    def vocab_size(self) -> int:
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        return {**self._ids, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **_: object) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return next((token for token, id_ in self._ids.items() if id_ == index), "<unk>")

    def build_inputs_with_special_tokens(self, ids: list[int], pair: list[int] | None = None) -> list[int]:
        return [1, *ids, *(pair or [])]


@cache
def letters() -> Letters:
    """The slow tokenizer, once."""
    return Letters()
