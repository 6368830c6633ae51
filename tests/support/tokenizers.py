"""Tiny real tokenizers, trained on a few sentences in milliseconds, for tests without a hub."""

import json
from collections import Counter
from collections.abc import Iterable

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "In 1989 the wall came down; in 1990 the country was one again.",
    "A crosscoder reads the activations of two models and writes them back.",
    "def main(argv):\n    for name in argv:\n        print(name)\n    return 0\n",
    "“Smart quotes”, she said, ‘aren’t so smart’ — are they?",  # noqa: RUF001
    "이 문장은 한국어로 쓰여 있습니다. 모델은 두 개입니다.",
    "这个句子是用中文写的。两个模型读同一段文字。",
    "Emoji are split into bytes: 😀 👩‍👩‍👧 🇰🇷 and back.",
    "Numbers such as 3.14159 and 2,048 are cut in different places.",
    "She told him that they would meet where the river turns to the north.",
]

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]

# What metaspace tokenizers know; "q", "H", "0" and most other scripts fall back to bytes.
ALPHABET = "▁abcdefghijklmnoprstuvwxyzABDEINST12345689.,;:()\n“”😀이은다모델这个文"

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
)
ANSWERABLE = CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def byte_level_tokenizer(
    vocab_size: int = 400,
    bos: bool = False,
    sentences: Iterable[str] = SENTENCES,
    trim_offsets: bool = True,
    normalizer: normalizers.Normalizer | None = None,
    chat_template: str | None = None,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer as Llama 3, Qwen and GPT have; `bos` puts `<s>` before a text.

    Qwen's normalizer is NFC.
    """
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[token for token in SPECIAL if token != "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    byte_level = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer.post_processor = processors.Sequence([byte_level, *_bos_template(tokenizer, bos)])
    return _wrap(tokenizer, chat_template)


def metaspace_tokenizer(
    vocab_size: int = 400,
    bos: bool = False,
    sentences: Iterable[str] = SENTENCES,
    byte_fallback: bool = True,
    prepend: bool = False,
    chat_template: str | None = None,
) -> PreTrainedTokenizerFast:
    """A BPE tokenizer over `▁` as Gemma and Llama 2 have; unknown characters fall back to bytes.

    `prepend` puts a `▁` before the text, as Llama 2 does.
    """
    fallback = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    marks = [normalizers.Prepend("▁")] if prepend else []
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=byte_fallback, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([*marks, normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size + len(fallback),
        special_tokens=SPECIAL + fallback,
        initial_alphabet=list(ALPHABET),
        limit_alphabet=len(ALPHABET),  # which characters a smaller number keeps is left to chance
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    # The byte tokens are ordinary vocabulary: as special tokens they would match literal "<0x0A>".
    tokenizer = _without_added(tokenizer, set(fallback))
    tokenizer.post_processor = processors.Sequence(_bos_template(tokenizer, bos))
    return _wrap(tokenizer, chat_template, unk_token="<unk>")


def unigram_tokenizer(
    vocab_size: int = 300, sentences: Iterable[str] = SENTENCES, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """A Unigram tokenizer behind NFKC and Metaspace, as T5 and XLM-R have, without `<s>`."""
    pieces = _pieces(sentences, "▁", "")[: vocab_size - len(SPECIAL)]
    scores = [(token, 0.0) for token in SPECIAL]
    scores += [(piece, -2.0 - 8.0 / len(piece)) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=SPECIAL.index("<unk>")))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(SPECIAL)
    return _wrap(tokenizer, chat_template, unk_token="<unk>")


def wordpiece_tokenizer(
    vocab_size: int = 300, sentences: Iterable[str] = SENTENCES, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer with `<s>` before and `</s>` behind a text, as BERT's."""
    lowered = [sentence.lower() for sentence in sentences]
    vocab = [*SPECIAL, *_pieces(lowered, "", "##")][:vocab_size]
    ids = {piece: id for id, piece in enumerate(vocab)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="<unk>"))  # pyright: ignore
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[(token, ids[token]) for token in ("<s>", "</s>")],
    )
    return _wrap(tokenizer, chat_template, unk_token="<unk>")


def _pieces(sentences: Iterable[str], start: str, inside: str) -> list[str]:
    """Characters, beginnings of words and whole words, those in most words first.

    The trainers of these two models depend on the order of hash maps, so that no two processes
    would test with the same tokenizer.
    """
    counts: Counter[str] = Counter()
    for word in " ".join(sentences).split():
        counts.update({start + word[:stop] for stop in range(1, len(word) + 1)})
        counts.update({inside + letter for letter in word[0 if start else 1 :]})
    counts.update({start: 1} if start else {})
    return sorted(
        counts, key=lambda piece: (len(piece.strip(start + inside)) > 1, -counts[piece], piece)
    )


def _bos_template(tokenizer: Tokenizer, bos: bool) -> list[processors.TemplateProcessing]:
    if not bos:
        return []
    return [
        processors.TemplateProcessing(
            single="<s> $A",
            pair="<s> $A <s> $B",
            special_tokens=[("<s>", tokenizer.token_to_id("<s>"))],
        )
    ]


def _without_added(tokenizer: Tokenizer, names: set[str]) -> Tokenizer:
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in names]
    return Tokenizer.from_str(json.dumps(state))


def _wrap(tokenizer: Tokenizer, chat_template: str | None, **names) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
        **names,
    )
    wrapped.chat_template = chat_template
    return wrapped
