"""The bytes that each token of a vocabulary stands for."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

# With a letter, a space, and characters of two to four bytes, of which few are whole tokens.
_PROBES = ("a bé한😀", "a b")


class Spelling:
    """The bytes of each token id, looked up when first asked for.

    Byte-level vocabularies (GPT-2, Llama 3, Qwen), `▁` vocabularies with or without byte fallback
    (Gemma, Llama 2), byte vocabularies (ByT5, tiktoken) and plain ones are told apart by what they
    make of a probe. Others, such as WordPiece, have no spelling.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items()}
        self._kind: Callable[[str], bytes] = _as_characters
        self._forget()
        self.known = any(map(self._find_kind, _PROBES))
        """Whether the vocabulary spells the probe; otherwise the bytes mean nothing."""

    def read(self, ids: np.ndarray) -> tuple[bytes, np.ndarray]:
        """What the tokens spell together, and the bytes of each one's share, int32 [N]."""
        size = int(ids.max(initial=-1)) + 1
        if size > len(self._lengths):
            missing = max(size, len(self._tokenizer)) - len(self._lengths)
            self._bytes = np.pad(self._bytes, (0, missing))
            self._lengths = np.pad(self._lengths, (0, missing), constant_values=-1)
        lengths = self._lengths[ids]
        if (lengths < 0).any():
            for id in np.unique(ids[lengths < 0]).tolist():
                self._bytes[id] = self._spell(id)
                self._lengths[id] = len(self._bytes[id])
            lengths = self._lengths[ids]
        return b"".join(self._bytes[ids].tolist()), lengths

    def join(self, ids: Sequence[int]) -> bytes:
        """What the tokens spell together."""
        return self.read(np.array(ids, dtype=np.int64))[0]

    def _forget(self) -> None:
        self._bytes = np.empty(0, dtype=object)
        self._lengths = np.empty(0, dtype=np.int32)

    def _spell(self, id: int) -> bytes:
        if id in self._added:
            return self._added[id].encode("utf-8", "surrogatepass")
        token: Any = self._tokenizer.convert_ids_to_tokens(id)
        return token if isinstance(token, bytes) else self._kind(str(token))

    def _find_kind(self, probe: str) -> bool:
        ids = self._tokenizer(probe, add_special_tokens=False, verbose=False)["input_ids"]
        for kind in (_as_byte_alphabet, _as_metaspace, _as_latin_1, _as_characters):
            self._kind = kind
            self._forget()
            if self.join(ids).replace(b" ", b"") == probe.replace(" ", "").encode():
                return True
        return False


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level vocabularies write bytes, of GPT-2's invention."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    written = {chr(byte): byte for byte in visible}
    return written | {chr(256 + number): byte for number, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _as_byte_alphabet(token: str) -> bytes:
    return bytes(_BYTE_OF[letter] for letter in token) if _BYTE_OF.keys() >= set(token) else b""


def _as_metaspace(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode("utf-8", "surrogatepass")


def _as_latin_1(token: str) -> bytes:
    return token.encode("latin-1", "ignore")


def _as_characters(token: str) -> bytes:
    return token.encode("utf-8", "surrogatepass")
