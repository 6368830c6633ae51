"""Reading labelled sections, such as `[HARMFUL]: no`, out of a language model's answer.

Models are asked for `[LABEL]: text` and write it in many ways: other case, markdown, other order,
twice, with prose around. What cannot be read is None, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

# Quantifiers are bounded, so that no answer, however odd, takes more than linear time.
_MARKUP = r"[*_`#]{0,6}"
_SPACE = r"[ \t]{0,8}"
_ITEM = r"^[ \t]{0,16}(?:[>#*+•-]{1,6}[ \t]{1,8}|\d{1,3}[.)][ \t]{1,8}){0,2}"
_COLON = "[:=\uff1a]"
_DASH = "[-\u2013\u2014]"
_OPENING = "[\\s\"'\u201c\u2018(\\[{<>:=-]"
_CLOSING = "[\"'\u201d\u2019)\\]}>]"
_PAUSE = "[\\s.,;:!(\u2013\u2014-]"

_THOUGHT_ENDS = re.compile("</think(?:ing)?>", re.IGNORECASE)
_THOUGHT_STARTS = re.compile("<think(?:ing)?>", re.IGNORECASE)
_FURNITURE = re.compile(r"^[ \t]{0,16}(```\w{0,16}|-{3,}|\*{3,}|_{3,})[ \t]{0,16}$", re.MULTILINE)

_VERDICTS = {"yes": True, "true": True, "harmful": True}
_VERDICTS |= {"no": False, "false": False, "not harmful": False}
_WORD = "|".join(_VERDICTS)
_VERDICT = re.compile(rf"{_OPENING}{{0,16}}({_WORD})\b{_CLOSING}{{0,4}}", re.IGNORECASE)
_AFTER = re.compile(rf"[ \t]{{0,16}}(\Z|[\n.,;:!(]|{_DASH}|(because|since|as)\b)", re.IGNORECASE)
_DOUBT = re.compile(
    rf"{_PAUSE}*({_WORD}|or|and|maybe|perhaps|possibly|unsure|uncertain|unclear|not sure)\b",
    re.IGNORECASE,
)


class Section(NamedTuple):
    """One occurrence of a label."""

    label: str
    text: str
    """What follows it, without markup around it; may be empty."""

    exact: bool
    """Whether it was written as asked, `[LABEL]:`, whatever the case and the markup."""


class YesNo(NamedTuple):
    """A verdict and the words after it."""

    value: bool | None
    """None where it cannot be read."""

    rest: str
    """Such as "it is benign" in "no - it is benign"."""


def find_sections(text: str, labels: Sequence[str]) -> list[Section]:
    """Every occurrence of every label, in the order of the text.

    A label is found as `[LABEL]:` anywhere, and at the start of a line also as `[LABEL]`, `LABEL:`,
    or alone on the line; in any case, with markdown around it, and with a space or hyphen for `_`.
    A section ends at the next label. The last one ends at its first blank line, so that a closing
    remark is no part of it. What a reasoning model writes inside `<think>` is not searched.
    """
    # Some chat templates write the opening tag themselves; a thought that was cut has no closing.
    text = _THOUGHT_STARTS.split(_THOUGHT_ENDS.split(text)[-1])[0]
    text = _FURNITURE.sub("", text.replace("\r\n", "\n"))
    names = {_key(label): label for label in labels}
    found = list(_pattern(tuple(labels)).finditer(text))
    sections = []
    for i, match in enumerate(found):
        last = i + 1 == len(found)
        body = text[match.end() : None if last else found[i + 1].start()]
        if last:
            body = re.split(r"\n\s*\n", body.strip(), maxsplit=1)[0]
        exact = match["exact"] is not None
        written = match["exact"] or match["bracketed"] or match["plain"]
        sections.append(Section(names[_key(written)], _tidy(body), exact))
    return sections


def section_text(sections: Sequence[Section], label: str) -> str | None:
    """Text of one label, or None where it is missing or empty.

    Of several occurrences, those written as asked come before the others, and the last is taken:
    models that reason aloud give a draft first.
    """
    texts = [section for section in sections if section.label == label and section.text]
    texts.sort(key=lambda section: section.exact)
    return texts[-1].text if texts else None


def section_verdict(sections: Sequence[Section], label: str) -> YesNo:
    """Yes or no of one label; unreadable where it is missing or two occurrences differ.

    An occurrence without text, such as a heading, says nothing.
    """
    texts = [section.text for section in sections if section.label == label and section.text]
    verdicts = [read_yes_no(text) for text in texts]
    if len({verdict.value for verdict in verdicts}) != 1:
        return YesNo(None, "")
    return verdicts[-1]


def read_yes_no(text: str) -> YesNo:
    """The verdict that a text begins with.

    Read are "yes", "no", "true", "false", "harmful" and "not harmful" at the end of a line, before
    punctuation or before "because". Not read is what hedges or goes on otherwise: "yes or no",
    "no idea", "yes/no", "maybe", "n/a".
    """
    text = re.sub(r"[*_`]", "", text).strip()
    match = _VERDICT.match(text)
    if not match:
        return YesNo(None, "")
    value = _VERDICTS[match[1].lower()]
    rest = text[match.end() :]
    doubt = _DOUBT.match(rest)
    if not _AFTER.match(rest) or (doubt and _VERDICTS.get(doubt[1].lower()) is not value):
        return YesNo(None, "")
    return YesNo(value, re.sub(rf"^({_DASH}|[\s.,;:!])+", "", rest))


@lru_cache
def _pattern(labels: tuple[str, ...]) -> re.Pattern[str]:
    names = "|".join(re.escape(label).replace("_", r"(?:\\?_|[ -])") for label in labels)

    def bracketed(group: str) -> str:
        return rf"\[{_SPACE}{_MARKUP}(?P<{group}>{names}){_MARKUP}{_SPACE}\]{_MARKUP}"

    exact = rf"(?:{_ITEM})?{_MARKUP}{bracketed('exact')}{_SPACE}{_COLON}{_MARKUP}"
    alone = rf"{_ITEM}{_MARKUP}{bracketed('bracketed')}(?=\s|\Z){_SPACE}(?:{_DASH}\s)?"
    plain = (
        rf"{_ITEM}{_MARKUP}(?P<plain>{names}){_MARKUP}{_SPACE}"
        rf"(?:{_COLON}{_MARKUP}|{_DASH}\s|$)"
    )
    return re.compile(f"{exact}|{alone}|{plain}", re.IGNORECASE | re.MULTILINE)


def _key(label: str) -> str:
    return re.sub(r"[\\_ -]+", "_", label).lower()


def _tidy(text: str) -> str:
    text = text.strip()
    if text.count("**") % 2:  # the other half was around the label
        text = text.removeprefix("**").removesuffix("**").strip()
    return text
