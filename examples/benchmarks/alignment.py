"""Compare `align_tokens` with Algorithm 1 (section B.1.6) on real texts and real tokenizers.

    python examples/benchmarks/alignment.py           1,200 texts, three minutes
    python examples/benchmarks/alignment.py --quick   200 of them, half a minute

The first run downloads 100 MB and keeps the 70 MB of them that it reads.

Both methods align the same tokens in one process on one core, in turn. Every pair of both is
judged by the bytes that its two tokens have read, with code that shares nothing with either. The
script ends with exit code 1 if what the project claims of its alignment does not hold, and with 2
if the data cannot be downloaded.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }

import argparse
import gc
import json
import platform
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np
from alignment_corpus import (
    TEXT_ARCHIVES,
    TEXTS_PER_CATEGORY,
    TOKENIZERS,
    CorpusText,
    DataUnavailable,
    digest,
    load_texts,
    load_tokenizers,
)
from machine import processor
from transformers import PreTrainedTokenizerFast

from sparsify_crosscoder.text.algorithm1 import ReferenceAlignment, align_reference
from sparsify_crosscoder.text.alignment import AlignedTokens, align_encoded, source_tokenizers
from sparsify_crosscoder.text.pairing import pair_tokens
from sparsify_crosscoder.text.tokenization import SourceTokenizer

PAIRS = (("Llama 3.1", "Qwen 3"), ("GPT-OSS", "DeepSeek"))
"""The paper's two pairs of models."""

QUICK_TEXTS_PER_CATEGORY = 25
ROUNDS = 9
"""How often our alignment and the tokenizers are timed; medians are reported."""

EAST_ASIAN = ("Korean", "Chinese", "Japanese")
MIN_COVERAGE = 0.999
MIN_RATIO_ENGLISH = 8
MIN_RATIO_EAST_ASIAN = 100
MIN_TOKENS_PER_SECOND = 2_000_000


class Reading(NamedTuple):
    """What one source's model has read of a text with each of its tokens."""

    keys: Sequence[object]
    """Equal for two tokens, of whichever source, exactly if they end at the same content."""

    characters: Sequence[int]
    """Characters of content, that is not white space, read up to and with each token."""


class Judged(NamedTuple):
    """A method's pairs of one text."""

    pairs: int
    wrong: int
    """Pairs whose tokens have not read the same, or do not lie behind the pair before."""
    possible: int
    """Positions in the text's content at which both sources end a token."""
    covered: int
    """Characters of content up to the last pair that is right."""
    content: int
    """Characters of content in the text."""
    finished: bool
    """Whether the method came to the end of the text."""


def byte_alphabet() -> dict[str, int]:
    """The character by which byte-level vocabularies write each byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(plain))
    return {chr(byte): byte for byte in plain} | {chr(256 + i): b for i, b in enumerate(others)}


class TokenBytes:
    """The bytes that the tokens of a byte-level vocabulary stand for."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        alphabet = byte_alphabet()
        added = tokenizer.get_added_vocab()
        self.of = {
            index: token.encode() if token in added else bytes(map(alphabet.__getitem__, token))
            for token, index in tokenizer.get_vocab().items()
        }

    def pieces(self, ids: Sequence[int], added: Sequence[int]) -> list[bytes]:
        """Each token's bytes, and none for those that the tokenizer puts around a text."""
        return [b"" if extra else self.of[i] for i, extra in zip(ids, added, strict=True)]


def read_bytes(text: str, pieces: Sequence[bytes]) -> Reading:
    """What was read with each token, given the bytes that each stands for.

    Two tokens have read the same if their bytes from the start are the same but for white space at
    the end. Tokens that spell the text exactly are compared by the length of that; tokens of a text
    that the tokenizer has composed (NFC) by the composed text itself.

    Raises ValueError for tokens that spell neither.
    """
    joined = b"".join(pieces)
    if joined == text.encode():
        return _read_exactly(text, pieces)
    if normalize("NFC", joined.decode()) != normalize("NFC", text):
        raise ValueError(f"The tokens do not spell the text that begins with {text[:40]!r}.")
    return _read_composed(pieces)


def _read_exactly(text: str, pieces: Sequence[bytes]) -> Reading:
    sizes = [len(character.encode()) for character in text]
    is_content = np.array([not character.isspace() for character in text])
    content_bytes = np.repeat(is_content, sizes)
    numbers = np.arange(1, len(content_bytes) + 1)
    behind_content = np.maximum.accumulate([0, *np.where(content_bytes, numbers, 0)])
    characters = np.zeros(len(content_bytes) + 1, dtype=int)
    characters[np.cumsum(sizes)] = is_content
    ends = list(accumulate(map(len, pieces)))
    return Reading(behind_content[ends].tolist(), np.cumsum(characters)[ends].tolist())


def _read_composed(pieces: Sequence[bytes]) -> Reading:
    keys = [
        normalize("NFC", read.decode("utf-8", "surrogateescape")).rstrip()
        for read in accumulate(pieces)
    ]
    return Reading(keys, [sum(map(_is_content, key)) for key in keys])


def _is_content(character: str) -> bool:
    return not character.isspace() and not "\ud800" <= character <= "\udfff"


def compose(readings: Sequence[Reading], pieces: Sequence[Sequence[bytes]]) -> list[Reading]:
    """The same readings, all by the composed text if one of them is."""
    kinds = {type(reading.keys[0]) for reading in readings}
    return list(readings) if len(kinds) == 1 else [_read_composed(part) for part in pieces]


def judge(
    indices: Sequence[Sequence[int]], readings: Sequence[Reading], finished: bool | None = None
) -> Judged:
    """Judge the pairs of one text: `indices` holds a list of token indices for each source.

    Without `finished` the text counts as finished if its last pair has read all of it.
    """
    first, second = indices
    wrong, covered, before = 0, 0, (-1, -1)
    for pair in zip(first, second, strict=True):
        in_order = pair[0] > before[0] and pair[1] > before[1]
        if in_order and readings[0].keys[pair[0]] == readings[1].keys[pair[1]]:
            covered = min(r.characters[i] for r, i in zip(readings, pair, strict=True))
        else:
            wrong += 1
        before = pair
    content = max(reading.characters[-1] for reading in readings)
    finished = covered == content if finished is None else finished
    # A position before all content, behind special tokens or white space, is none.
    possible = set(readings[0].keys) & set(readings[1].keys) - {0, ""}
    return Judged(len(first), wrong, len(possible), covered, content, finished)


FEATURES = {
    "box drawing": r"[\u2500-\u259f]",
    "operators and arrows": (
        r"[\xac\xb1\xd7\xf7\u2190-\u22ff\u2308-\u230b\u239b-\u23b3"
        r"\u27c0-\u27ff\u2900-\u29ff\u2a00-\u2aff]"
    ),
    "smart quotes": r"[\u2018-\u201f]",
    "emoji": (
        r"[\u231a\u231b\u23e9-\u23f3\u2600-\u27bf\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55"
        r"\ufe0f\u20e3\U0001f000-\U0001faff]"
    ),
}
CODE = re.compile(
    r"```|^\s*(def|class|import|from|const|let|var|function|return)\b.*[=(){}:;]|[;{]$|^\s*>>> ",
    re.MULTILINE,
)


def features(text: str) -> list[str]:
    """The content features of a text that the paper names, each as in its tables 4 and 5."""
    special = [name for name, pattern in FEATURES.items() if re.search(pattern, text)]
    found = ["special characters", *special] if special else []
    return [*found, "code"] if CODE.search(text) else found


SCRIPTS = {
    "English": re.compile("[A-Za-z]+"),
    "Korean": re.compile("[\uac00-\ud7a3]"),
    "Japanese": re.compile("[\u3041-\u30ff]"),
    "Chinese": re.compile("[\u4e00-\u9fff]"),
}


def language(text: str) -> str:
    """The language of a text, judged by its script, or "mixed" if one third is in another.

    East Asian characters and Latin words are counted. Han characters belong to the Japanese around
    them if there is any.
    """
    counts = {name: len(pattern.findall(text)) for name, pattern in SCRIPTS.items()}
    if counts["Japanese"] > counts["Chinese"] / 5:
        counts["Japanese"] += counts.pop("Chinese")
    (name, most), *others = sorted(counts.items(), key=lambda item: -item[1])
    return name if sum(count for _, count in others) * 2 < most or not most else "mixed"


def characteristics(text: CorpusText) -> list[tuple[str, str]]:
    """Text format, language and content features of a text."""
    chat = text.category == "chat"
    return [
        ("text format", "chat" if chat else "regular text"),
        ("language", language(text.text)),
        *(("content features", feature) for feature in features(text.text)),
    ]


class Tokenised(NamedTuple):
    """What two tokenizers make of the texts; each list holds one entry per source."""

    texts: list[str]
    tokenizers: Sequence[PreTrainedTokenizerFast]
    sources: list[SourceTokenizer]
    plain: list[list[list[int]]]
    """Token ids without special tokens, of every text."""
    ids: list[list[list[int]]]
    """Token ids as `tokenizer(text)` gives them."""
    added: list[list[list[int]]]
    """1 for the special tokens that are around the text."""

    def tokens(self, text: int) -> float:
        """Tokens of a text, the mean of both sources."""
        return sum(len(ids[text]) for ids in self.plain) / len(self.plain)


class Timings(NamedTuple):
    """Processor seconds of one category, of each round."""

    reference: list[float]
    """Algorithm 1 on the round's share of the texts."""
    singly: list[float]
    """Ours on the same, one text at a time."""
    ours: list[float]
    """Ours on all of them at once, as the harvest runs it: the pairs as arrays."""
    listed: list[float]
    """The same with the results of `align_batch`: Python lists for each text."""
    tokenising: list[float]
    """Both tokenizers on all of them."""


def benchmark_pair(
    texts: Sequence[CorpusText], tokenizers: Sequence[PreTrainedTokenizerFast]
) -> dict[str, Any]:
    """Align the texts with both methods, judge and time them."""
    given = tokenise([text.text for text in texts], tokenizers)
    start = process_time()
    aligned = align_encoded(given.texts, given.plain, given.sources)
    first_pass = process_time() - start
    # What is loaded by now is not for the garbage collector to look through in either method.
    gc.collect()
    gc.freeze()
    set_up = set_up_seconds(given)
    reference: dict[int, ReferenceAlignment] = {}
    timings: dict[str, Timings] = {}
    for category in dict.fromkeys(text.category for text in texts):
        rows = [i for i, text in enumerate(texts) if text.category == category]
        timings[category] = race(given, rows, reference, set_up)
        print(f"  {category}: {len(rows)} texts", file=sys.stderr, flush=True)
    judged, composed = judge_all(given, reference, aligned)

    groups = {category: [category] for category in timings}
    groups[", ".join(EAST_ASIAN)] = list(EAST_ASIAN)
    groups["total"] = list(timings)
    results = {}
    for name, categories in groups.items():
        rows = [i for i, text in enumerate(texts) if text.category in categories]
        results[name] = _group(
            [judged[i] for i in rows],
            sum(given.tokens(i) for i in rows),
            [timings[category] for category in categories],
        )
    failed = [text for text, (theirs, _) in zip(texts, judged, strict=True) if not theirs.finished]
    return {
        "groups": results,
        "failures_of_algorithm_1": _failures(failed, texts),
        "texts_with_fewer_pairs": [
            text._asdict() | {"pairs": [theirs.pairs, ours.pairs]}
            for text, (theirs, ours) in zip(texts, judged, strict=True)
            if _has_fewer_pairs(theirs, ours)
        ],
        "texts_judged_as_composed": composed,
        "first_pass_tokens_per_second": results["total"]["tokens"] / first_pass,
        "algorithm_1_set_up_seconds_per_text": set_up,
    }


def tokenise(texts: list[str], tokenizers: Sequence[PreTrainedTokenizerFast]) -> Tokenised:
    """Tokenise the texts as both methods want them."""
    sources = source_tokenizers(tokenizers)
    # One text at a time: freeing what is made of many leaves a heap in which all later is slower.
    plain = [[source.encode([text])[0] for text in texts] for source in sources]
    ids: list[list[list[int]]] = []
    added: list[list[list[int]]] = []
    for tokenizer in tokenizers:
        ids.append([])
        added.append([])
        for text in texts:
            encoding = tokenizer(text, return_special_tokens_mask=True, verbose=False)
            ids[-1].append(encoding["input_ids"])
            added[-1].append(encoding["special_tokens_mask"])
    return Tokenised(texts, tokenizers, sources, plain, ids, added)


def set_up_seconds(given: Tokenised) -> float:
    """What our implementation of Algorithm 1 prepares for each text, which is not the method's."""
    align_reference(given.texts[0], given.tokenizers, ids=[ids[0] for ids in given.ids])
    start = process_time()
    for _ in given.texts:
        align_reference("", given.tokenizers, ids=[[], []])
    return (process_time() - start) / len(given.texts)


def race(
    given: Tokenised, rows: list[int], reference: dict[int, ReferenceAlignment], set_up: float
) -> Timings:
    """Time both methods in turn on the texts in `rows`; what Algorithm 1 finds is added.

    Every round times ours and the tokenizers on all these texts, and Algorithm 1, which is slow, on
    another share of them.
    """
    texts = [given.texts[i] for i in rows]
    plain = [[ids[i] for i in rows] for ids in given.plain]
    timings = Timings([], [], [], [], [])
    for number in range(ROUNDS):
        share = rows[number::ROUNDS]
        timings.tokenising.append(sum(_seconds(source.encode, texts) for source in given.sources))
        timings.ours.append(_seconds(pair_tokens, texts, plain, given.sources))
        timings.listed.append(_seconds(align_encoded, texts, plain, given.sources))
        start = process_time()
        for i in share:
            align_encoded([given.texts[i]], [[ids[i]] for ids in given.plain], given.sources)
        timings.singly.append(process_time() - start)
        start = process_time()
        for i in share:
            ids = [ids[i] for ids in given.ids]
            reference[i] = align_reference(given.texts[i], given.tokenizers, ids=ids)
        timings.reference.append(process_time() - start - set_up * len(share))
    return timings


def judge_all(
    given: Tokenised, reference: Mapping[int, ReferenceAlignment], aligned: Sequence[AlignedTokens]
) -> tuple[list[tuple[Judged, Judged]], int]:
    """Judge Algorithm 1 and ours on every text, and count the texts compared as composed."""
    spelled = [TokenBytes(tokenizer) for tokenizer in given.tokenizers]
    judged, composed = [], 0
    for i, text in enumerate(given.texts):
        ids = [ids[i] for ids in given.ids]
        if aligned[i].input_ids != ids:
            raise RuntimeError(f"Text {i} was tokenised differently for the two methods.")
        pieces = [
            source.pieces(tokens, added[i])
            for source, tokens, added in zip(spelled, ids, given.added, strict=True)
        ]
        readings = compose([read_bytes(text, part) for part in pieces], pieces)
        composed += isinstance(readings[0].keys[0], str)
        theirs = judge(reference[i].indices, readings, reference[i].finished)
        judged.append((theirs, judge(aligned[i].indices, readings)))
    return judged, composed


def _has_fewer_pairs(theirs: Judged, ours: Judged) -> bool:
    return theirs.finished and ours.pairs < theirs.pairs


def _seconds(function: Callable[..., object], *args: object, **kwargs: object) -> float:
    start = process_time()
    function(*args, **kwargs)
    return process_time() - start


def _group(
    judged: Sequence[tuple[Judged, Judged]], tokens: float, timings: Sequence[Timings]
) -> dict[str, Any]:
    theirs, ours = (_figures(side) for side in zip(*judged, strict=True))
    reference = sum(sum(timing.reference) for timing in timings)
    singly = sum(sum(timing.singly) for timing in timings)
    listing = median(map(sum, zip(*(timing.listed for timing in timings), strict=True)))
    aligning = median(map(sum, zip(*(timing.ours for timing in timings), strict=True)))
    tokenising = median(map(sum, zip(*(timing.tokenising for timing in timings), strict=True)))
    return {
        "texts": len(judged),
        "tokens": tokens,
        "algorithm_1": theirs | {"tokens_per_second": tokens / reference},
        "ours": ours
        | {
            "tokens_per_second": tokens / aligning,
            "tokens_per_second_as_lists": tokens / listing,
            "tokens_per_second_text_by_text": tokens / singly,
        },
        "texts_with_fewer_pairs": sum(_has_fewer_pairs(*both) for both in judged),
        "tokenising_tokens_per_second": tokens / tokenising,
        "times_as_fast": reference / aligning,
        "share_of_tokenising": aligning / tokenising,
    }


def _figures(judged: Sequence[Judged]) -> dict[str, float]:
    columns = zip(*judged, strict=True)
    total = dict(zip(Judged._fields, map(sum, columns), strict=True))
    return {
        "texts_to_the_end": total["finished"],
        "share_to_the_end": total["finished"] / len(judged),
        "pairs": total["pairs"],
        "wrong_pairs": total["wrong"],
        "pairs_possible": total["possible"],
        "content_covered": total["covered"] / total["content"],
    }


def _failures(failed: Sequence[CorpusText], texts: Sequence[CorpusText]) -> list[dict[str, Any]]:
    """What the texts that Algorithm 1 did not finish are like, as in tables 4 and 5."""
    everywhere = Counter(kind for text in texts for kind in characteristics(text))
    among = Counter(kind for text in failed for kind in characteristics(text))
    order = ("text format", "language", "content features")
    languages = ("English", *EAST_ASIAN, "mixed")
    inner = ("chat", "regular text", *languages, "special characters", *FEATURES, "code")
    kinds = sorted(everywhere, key=lambda kind: (order.index(kind[0]), inner.index(kind[1])))
    return [
        {
            "kind": kind[0],
            "characteristic": kind[1],
            "failures": among[kind],
            "share_of_failures": among[kind] / max(len(failed), 1),
            "texts": everywhere[kind],
        }
        for kind in kinds
    ]


def claims(name: str, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the project says of its alignment, with what was found for one pair of tokenizers."""
    groups = result["groups"]
    total = groups["total"]
    ours = total["ours"]
    english, east_asian = groups["English prose"], groups[", ".join(EAST_ASIAN)]
    found = [
        ("texts not aligned to the end", total["texts"] - ours["texts_to_the_end"], "=", 0),
        ("wrong pairs", ours["wrong_pairs"], "=", 0),
        ("content covered", ours["content_covered"], ">=", MIN_COVERAGE),
        ("texts with fewer pairs than Algorithm 1", total["texts_with_fewer_pairs"], "=", 0),
        ("times as fast, English prose", english["times_as_fast"], ">=", MIN_RATIO_ENGLISH),
        (
            "times as fast, Korean, Chinese and Japanese",
            east_asian["times_as_fast"],
            ">=",
            MIN_RATIO_EAST_ASIAN,
        ),
        ("tokens per second", ours["tokens_per_second"], ">=", MIN_TOKENS_PER_SECOND),
    ]
    return [
        {
            "tokenizers": name,
            "claim": claim,
            "found": value,
            "required": f"{sign} {limit:,}",
            "timed": claim.startswith(("times as fast", "tokens per second")),
            "holds": value == limit if sign == "=" else value >= limit,
        }
        for claim, value, sign, limit in found
    ]


def run(folder: Path, per_category: int) -> dict[str, Any]:
    """The whole benchmark.

    Raises DataUnavailable and RuntimeError as `load_tokenizers` and `load_texts` do.
    """
    tokenizers = load_tokenizers(folder)
    texts = load_texts(folder, per_category)
    report: dict[str, Any] = {
        "corpus": {
            "texts": len(texts),
            "characters": sum(len(text.text) for text in texts),
            "sha256": digest(texts),
            "categories": dict(Counter(text.category for text in texts)),
            "sources": _sources(texts),
        },
        "versions": {
            package: version(package)
            for package in ("sparsify-crosscoder", "transformers", "tokenizers", "numpy")
        }
        | {"python": platform.python_version()},
        "machine": {"processor": processor(), "system": platform.system(), "cores_used": 1},
        "pairs": {},
        "claims": [],
    }
    for names in PAIRS:
        name = " + ".join(names)
        print(f"{name} ...", file=sys.stderr, flush=True)
        result = benchmark_pair(texts, [tokenizers[one] for one in names])
        report["pairs"][name] = result
        report["claims"] += claims(name, result)
    return report


def _sources(texts: Sequence[CorpusText]) -> list[dict[str, Any]]:
    archives = (*TOKENIZERS.values(), *TEXT_ARCHIVES)
    return [
        archive._asdict()
        | {"texts": Counter(text.category for text in texts if text.source == archive.title)}
        for archive in archives
    ]


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown tables."""
    corpus, versions = report["corpus"], report["versions"]
    lines = [
        "# Algorithm 1 and align_tokens on real texts",
        "",
        f"{corpus['texts']:,} texts of up to 2,000 characters, {corpus['characters']:,} in all, "
        f"on one core of {report['machine']['processor']} with Python {versions['python']}, "
        f"transformers {versions['transformers']} and tokenizers {versions['tokenizers']}. "
        "Made by `python examples/benchmarks/alignment.py`, which says how.",
        "",
        "Algorithm 1 comes to the end of a text when it says so itself, `align_tokens` (ours) when "
        "its last pair has read all of it. A pair is wrong when its two tokens have not read the "
        "same bytes, white space at the end left out. Content covered is the share of characters, "
        "white space left out, up to the last right pair.",
        "",
        "Tokens are the mean of both sources. Speeds are tokens per second of processor time, "
        "tokenising left out; a text that Algorithm 1 gives up counts whole. Ours is what the "
        "harvest runs, on all texts of a row at once; as lists, what `align_batch` makes of it; "
        "text by text, what `align_tokens` takes.",
    ]
    for name, result in report["pairs"].items():
        lines += ["", f"## {name}", "", *_agreement(result), "", *_speed(result)]
        lines += ["", *_failure_table(result)]
    lines += ["", "## Claims", "", *_claims_table(report["claims"])]
    lines += ["", "## Texts and tokenizers", "", *_sources_table(corpus["sources"])]
    return "\n".join(lines) + "\n"


def _agreement(result: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, group in result["groups"].items():
        both = group["algorithm_1"], group["ours"]
        rows.append(
            [
                name,
                f"{group['texts']:,}",
                _either(_percent(one["share_to_the_end"]) for one in both),
                _either(f"{one['pairs']:,}" for one in both),
                _either(f"{one['wrong_pairs']:,}" for one in both),
                _either(_percent(one["content_covered"]) for one in both),
            ]
        )
    measures = ("to the end", "pairs", "wrong pairs", "content covered")
    return _table(["Algorithm 1 / ours", "texts", *measures], rows)


def _either(cells: Iterable[str]) -> str:
    return " / ".join(cells)


def _percent(share: float) -> str:
    """One decimal place, never rounded up to 100%."""
    return f"{100 * min(share, 0.999 if share < 1 else 1):.1f}%"


def _speed(result: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            name,
            f"{group['tokens']:,.0f}",
            f"{_rounded(group['tokenising_tokens_per_second']):,}",
            f"{_rounded(group['algorithm_1']['tokens_per_second']):,}",
            f"{_rounded(group['ours']['tokens_per_second_text_by_text']):,}",
            f"{_rounded(group['ours']['tokens_per_second_as_lists']):,}",
            f"{_rounded(group['ours']['tokens_per_second']):,}",
            f"{_rounded(group['times_as_fast'], 2):,}",
            f"{100 * group['share_of_tokenising']:.0f}%",
        ]
        for name, group in result["groups"].items()
    ]
    headings = ["tokens per second", "tokens", "tokenising", "Algorithm 1", "ours, text by text"]
    headings += ["ours, as lists", "ours", "times as fast", "ours / tokenising time"]
    return _table(headings, rows)


def _rounded(value: float, digits: int = 3) -> int:
    return int(float(f"{value:.{digits}g}"))


def _failure_table(result: Mapping[str, Any]) -> list[str]:
    total = result["groups"]["total"]
    failed = total["texts"] - total["algorithm_1"]["texts_to_the_end"]
    rows = [
        [
            row["kind"],
            row["characteristic"],
            f"{row['failures']:,}",
            f"{100 * row['share_of_failures']:.1f}%",
            f"{row['texts']:,}",
        ]
        for row in result["failures_of_algorithm_1"]
    ]
    headings = ["failures of Algorithm 1", "characteristic", f"count (n = {failed:,})"]
    return _table([*headings, "share of failures", "all texts like that"], rows)


def _claims_table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    shown = [
        [
            row["tokenizers"],
            row["claim"],
            row["required"],
            f"{row['found']:,.4g}" if row["found"] < 1000 else f"{_rounded(row['found']):,}",
            "holds" if row["holds"] else "FAILS",
        ]
        for row in rows
    ]
    return _table(["tokenizers", "claim", "required", "found", ""], shown)


def _sources_table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    shown = [
        [
            f"{row['name']} {row['version']} ({row['registry']})",
            row["licence"],
            ", ".join(f"{category} {count}" for category, count in row["texts"].items())
            or "tokenizer",
        ]
        for row in rows
    ]
    return _table(["package", "licence", "texts"], shown)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown lines in which the columns stand under each other."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    numbers = [
        bool(rows) and all(re.fullmatch(r"[\d.,]+%?( / [\d.,]+%?)?", cell) for cell in column)
        for column in zip(*rows, strict=True)
    ]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(cells, widths, numbers, strict=True)
        )
        return "| " + " | ".join(padded) + " |"

    rule = [
        "-" * (width - 1) + (":" if number else "-")
        for width, number in zip(widths, numbers, strict=True)
    ]
    return [line(headings), line(rule), *map(line, rows)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="200 texts, half a minute")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    parser.add_argument("--table", type=Path, metavar="PATH", help="write the tables there")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("runs/benchmark-data"),
        metavar="FOLDER",
        help="where downloads are kept",
    )
    args = parser.parse_args()
    try:
        report = run(args.data, QUICK_TEXTS_PER_CATEGORY if args.quick else TEXTS_PER_CATEGORY)
    except DataUnavailable as error:
        print(error, file=sys.stderr)
        return 2
    tables = markdown(report)
    print(tables, end="")
    for path, content in ((args.json, json.dumps(report, indent=1)), (args.table, tables)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    failed = [claim for claim in report["claims"] if not claim["holds"]]
    for claim in failed:
        print(f"fails: {claim['tokenizers']}: {claim['claim']}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
