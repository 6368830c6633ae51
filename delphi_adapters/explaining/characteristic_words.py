"""Words that stand out in some passages against a corpus, counted and without a judge.

Words are runs of letters, marks and digits, whatever the tokenizer cuts them into. Scripts that
are written without spaces (Chinese, Japanese kana, Thai, Lao, Khmer, Burmese) are counted by two
characters at a time, as search engines do; punctuation and ends of lines count as words too.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import regex

PRIOR = 100.0
"""Words that the corpus's own frequencies count for beside a latent's passages."""

LEAST_Z = 2.0
LEAST_PASSAGES = 2

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--[{_UNSPACED}]]"
_WORD = regex.compile(
    rf"(?P<unspaced>[{_UNSPACED}]+)"
    rf"|{_LETTER}+(?:(?:['\u2019]|(?<=\p{{N}})[.,](?=\p{{N}})){_LETTER}+)*"
    r"|[^\s\p{L}\p{M}\p{N}_]+"
    r"|(?P<ends>\s*\n\s*)",
    regex.V1,
)
_CHARACTER = regex.compile(r"\X")


class Word(NamedTuple):
    """A word in a text."""

    text: str
    start: int
    end: int

    @property
    def key(self) -> str:
        """What it is counted as: the same in every case and composition."""
        return unicodedata.normalize("NFC", self.text).casefold()


class Characteristic(NamedTuple):
    """A word that stands out."""

    word: str
    """As it is mostly written there."""

    passages: int
    """Passages that have it."""

    corpus: int
    """Times that it is in the corpus."""

    z: float
    """Its log-odds against the corpus, in standard errors."""


@dataclass
class Corpus:
    """How often each word is in some texts."""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.counts.update(word.key for word in words(text))


def words(text: str) -> list[Word]:
    """The words of a text in order; those of scripts without spaces overlap by a character."""
    found: list[Word] = []
    for match in _WORD.finditer(text):
        if match["ends"] is not None:
            found.append(Word("\n", *match.span()))
        elif match["unspaced"] is None:
            found.append(Word(match[0], *match.span()))
        else:
            spans = [one.span() for one in _CHARACTER.finditer(text, *match.span())]
            pairs = list(pairwise(spans)) or [(spans[0], spans[0])]
            found += [Word(text[a[0] : b[1]], a[0], b[1]) for a, b in pairs]
    return found


def characteristic(
    passages: Sequence[Sequence[Word]], corpus: Mapping[str, int], most: int = 8
) -> list[Characteristic]:
    """The words that stand out in a latent's passages, those that do most first.

    A word counts once in a passage. Scored by the log-odds ratio with an informative Dirichlet
    prior (Monroe, Colaresi and Quinn 2008, equations 15, 16, 18, 20 and 22): `PRIOR` words with
    the corpus's frequencies are added to both sides, so that a rare word needs more than one
    passage. Left out is what less than `LEAST_PASSAGES` passages have, or scores less than
    `LEAST_Z`.
    """
    forms: dict[str, Counter[str]] = {}
    for passage in passages:
        for key, text in sorted({(word.key, word.text) for word in passage}):
            forms.setdefault(key, Counter())[text] += 1
    counts = Counter(key for passage in passages for key in {word.key for word in passage})
    here, everywhere = counts.total(), sum(corpus.values())
    found = []
    for key, count in counts.items():
        # Passages may be of text that the corpus leaves out.
        there = max(corpus.get(key, 0), count)
        z = round(log_odds_z(count, here, there, max(everywhere, here)), 2)
        if count >= LEAST_PASSAGES and z >= LEAST_Z:
            written = min(forms[key], key=lambda text, key=key: (-forms[key][text], text))
            found.append(Characteristic(written, count, corpus.get(key, 0), z))
    return sorted(found, key=lambda one: (-one.z, one.word))[:most]


def log_odds_z(count: int, total: int, corpus_count: int, corpus_total: int) -> float:
    """By how many standard errors a word's log-odds are higher than in the corpus.

    `count` of `total` words against `corpus_count` of `corpus_total`.
    """
    prior = PRIOR * corpus_count / corpus_total

    def log_odds(of: int, all_of: int) -> float:
        return math.log((of + prior) / max(all_of + PRIOR - of - prior, 1e-9))

    difference = log_odds(count, total) - log_odds(corpus_count, corpus_total)
    return difference / math.sqrt(1 / (count + prior) + 1 / (corpus_count + prior))
