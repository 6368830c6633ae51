"""Which parts of a message survive in what a chat template has made of it."""

from bisect import bisect_left
from collections.abc import Sequence

ANCHOR = 16
"""Characters, white space left out, that have to be equal and unique for a part to be believed."""
_EDGE = 8
_LONGEST = 2_000_000

Block = tuple[int, int, int]


def surviving_parts(original: str, altered: str, exact: bool) -> list[Block]:
    """Equal parts of two strings, in the order of both, as (start, stop) in `altered` and the place
    in `original`.

    White space may differ between parts, not inside one. With `exact`, `altered` is nothing but the
    original as it was altered, so that what is left of it may be short; otherwise other text may be
    around it, and only parts of `ANCHOR` characters or more are found, which occur once in each.
    Takes linear time.
    """
    in_original, in_altered = _visible(original), _visible(altered)
    before = "".join(original[i] for i in in_original)
    after = "".join(altered[i] for i in in_altered)
    if not before or not after or max(len(before), len(after)) > _LONGEST:
        return []
    blocks = _whole(before, after) if exact else None
    if blocks is None:
        blocks = _edges_and_anchors(before, after) if exact else _anchors(before, after)
    return [
        part
        for block in blocks
        for part in _with_white_space(block, original, altered, in_original, in_altered)
    ]


def _whole(before: str, after: str) -> list[Block] | None:
    """One string as a whole in the other: at its end, at its beginning, or at one place in it."""
    short, long = sorted((before, after), key=len)
    if long.endswith(short):
        place = len(long) - len(short)
    elif long.startswith(short):
        place = 0
    elif long.count(short) == 1 and len(short) >= _EDGE:
        place = long.index(short)
    else:
        return None
    return [(0, place, len(short)) if short is before else (place, 0, len(short))]


def _edges_and_anchors(before: str, after: str) -> list[Block]:
    """The common beginning and end, and the anchors between."""
    head = _common(before, after, 0, 0)
    head = head if head >= _EDGE else 0
    rest = min(len(before), len(after)) - head
    tail = _common(before[::-1], after[::-1], 0, 0, rest)
    tail = tail if tail >= _EDGE else 0
    inner = _anchors(before[head : len(before) - tail], after[head : len(after) - tail])
    blocks = [(0, 0, head)] if head else []
    blocks += [(b + head, a + head, size) for b, a, size in inner]
    return blocks + ([(len(before) - tail, len(after) - tail, tail)] if tail else [])


def _anchors(before: str, after: str) -> list[Block]:
    """Parts that begin at a unique anchor, lengthened as far as both agree, in order in both."""
    places = _unique(before)
    unique = _unique(after)
    found: list[Block] = []
    position = 0
    while position <= len(after) - ANCHOR:
        key = after[position : position + ANCHOR]
        place = places.get(key, -1) if unique[key] >= 0 else -1
        if place < 0:
            position += 1
            continue
        size = _common(before, after, place, position)
        found.append((place, position, size))
        position += size
    return _increasing(found)


def _unique(text: str) -> dict[str, int]:
    """Where each run of `ANCHOR` characters is, -1 for those at several places."""
    places: dict[str, int] = {}
    for start in range(len(text) - ANCHOR + 1):
        key = text[start : start + ANCHOR]
        places[key] = -1 if key in places else start
    return places


def _common(one: str, other: str, at_one: int, at_other: int, limit: int | None = None) -> int:
    """How many characters agree from two places on, found by halving."""
    longest = min(len(one) - at_one, len(other) - at_other)
    longest = longest if limit is None else min(longest, limit)
    size, step = 0, 64
    while size < longest:
        step = min(step, longest - size)
        if (
            one[at_one + size : at_one + size + step]
            == other[at_other + size : at_other + size + step]
        ):
            size += step
            step *= 2
        elif step == 1:
            break
        else:
            step //= 2
    return size


def _increasing(blocks: Sequence[Block]) -> list[Block]:
    """The longest run of blocks whose places increase in both strings, overlaps cut off."""
    tops: list[int] = []
    chain: list[int] = []
    back = [-1] * len(blocks)
    for number, (place, _, _) in enumerate(blocks):
        rank = bisect_left(tops, place)
        back[number] = chain[rank - 1] if rank else -1
        tops[rank : rank + 1] = [place]
        chain[rank : rank + 1] = [number]
    kept: list[Block] = []
    number = chain[-1] if chain else -1
    while number >= 0:
        place, position, size = blocks[number]
        if kept:
            size = min(size, kept[-1][0] - place, kept[-1][1] - position)
        kept.append((place, position, size))
        number = back[number]
    return kept[::-1]


def _with_white_space(
    block: Block, original: str, altered: str, in_original: list[int], in_altered: list[int]
) -> list[Block]:
    """A block of visible characters as parts that are equal with the white space inside."""
    place, position, size = block
    parts, first = [], 0
    for number in range(1, size + 1):
        if number < size:
            old = slice(in_original[place + number - 1], in_original[place + number])
            new = slice(in_altered[position + number - 1], in_altered[position + number])
            if original[old] == altered[new]:
                continue
        start, last = in_altered[position + first], in_altered[position + number - 1]
        parts.append((start, last + 1, in_original[place + first]))
        first = number
    return parts


def _visible(text: str) -> list[int]:
    return [place for place, character in enumerate(text) if not character.isspace()]
