"""Algorithm 1 of section B.1.6 as printed: the reference that tests and benchmarks compare with."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from .alignment import special_ids


def algorithm1(
    ids_a: Sequence[int],
    ids_b: Sequence[int],
    tokenizer_a: PreTrainedTokenizerBase,
    tokenizer_b: PreTrainedTokenizerBase,
) -> list[tuple[int, int]]:
    """Align two token sequences by decoding growing windows until their texts match.

    Returns the last token of every matching window, as (index in a, index in b), up to the first
    divergence that it cannot resolve: window decoding is quadratic, and characters that are split
    into several tokens can end it early or make a wrong pair. `align_tokens` has neither fault.
    Windows are compared without the white space around them; only the indices that lines 8 to 13
    and 29 to 32 let run past the end are bounded here.
    """
    a, b = _Side(ids_a, tokenizer_a), _Side(ids_b, tokenizer_b)
    pairs: list[tuple[int, int]] = []
    pos_a, pos_b = a.next_content(0), b.next_content(0)
    while pos_a < len(ids_a) and pos_b < len(ids_b):
        end_a, end_b = pos_a + 1, pos_b + 1
        text_a, text_b = a.text(pos_a, end_a), b.text(pos_b, end_b)
        while text_a != text_b:
            if len(text_a) < len(text_b) and end_a < len(ids_a):
                end_a += 1
                text_a = a.text(pos_a, end_a)
            elif end_b < len(ids_b):
                end_b += 1
                text_b = b.text(pos_b, end_b)
            else:
                return pairs
        pairs.append((end_a - 1, end_b - 1))
        pos_a, pos_b = a.next_content(end_a), b.next_content(end_b)
    return pairs


class _Side:
    def __init__(self, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase):
        self.ids = list(ids)
        self.tokenizer = tokenizer
        self.special = set(special_ids(tokenizer).tolist())

    def text(self, start: int, stop: int) -> str:
        ids = self.ids[start:stop]
        decoded = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert isinstance(decoded, str)
        return decoded.strip()

    def next_content(self, index: int) -> int:
        while index < len(self.ids) and (
            self.ids[index] in self.special or not self.text(index, index + 1)
        ):
            index += 1
        return index
