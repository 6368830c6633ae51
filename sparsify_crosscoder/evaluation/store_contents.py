"""What an activation store holds, in words and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..harvest.model_identity import revision_suffix, source_names
from ..harvest.sources import load_fast_tokenizer
from ..store.store import ActivationStore
from .top import mark_tokens


@dataclass(frozen=True)
class StoreContents:
    """What a store holds."""

    store: str
    sources: list[dict[str, Any]]
    pairs: int
    texts: int
    dtype: str
    bytes: int
    shards: int
    harvests: list[dict[str, Any] | None]
    """What each harvest noted of its texts; None where it noted nothing."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self, *, verified: bool = False) -> str:
        """The contents in a few lines; `verified` says that all bytes are as they were written."""
        lines = [
            f"{self.store}: {self.pairs:,} pairs of {self.texts:,} texts in {self.dtype}, "
            f"{self.bytes / 1e9:,.2f} GB in {self.shards:,} shards"
            + (", all as they were written" if verified else "")
        ]
        for letter, source in zip("ABCDEFGH", self.sources, strict=False):
            name = source["name"] + revision_suffix(source)
            lines.append(f"  {letter}  {name}  {source['hookpoint']}  width {source['width']}")
        for origin in self.harvests:
            if origin is not None:
                lines.append("  from " + ", ".join([origin["dataset"], *origin["extra_datasets"]]))
        return "\n".join(lines)


@dataclass(frozen=True)
class ShownPair:
    """Where a pair is from, and the text around it in every model's own tokens."""

    pair: int
    text_id: int
    dataset: str | None
    characters: list[int]
    token_ids: list[int]
    contexts: Mapping[str, str]
    """By a letter and the model's name."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        first, last = self.characters
        place = f"text {self.text_id} of {self.dataset}, characters {first} to {last}"
        lines = [f"\npair {self.pair}  {place}"]
        return "\n".join([*lines, *(f"  {name}: {text}" for name, text in self.contexts.items())])


def store_contents(store: ActivationStore) -> StoreContents:
    """Read what a store's manifest and windows say."""
    named = ("name", "revision", "hookpoint", "width")
    return StoreContents(
        store=str(store.path),
        sources=[
            {name: source[name] for name in named if source.get(name) is not None}
            for source in store.sources
        ],
        pairs=len(store),
        texts=len(store.windows.unique("text_id")),
        dtype=store.dtype,
        bytes=store.num_bytes,
        shards=store.num_shards,
        harvests=[part["origin"] for part in store.manifest["parts"]],
    )


def show_pair(
    store: ActivationStore,
    number: int,
    token: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> ShownPair:
    """A pair of a store as text; `token` is the hub's, for the models' tokenizers."""
    pair = store.pair(number)
    window, contexts = store.windows[pair.window], {}
    names = source_names(store.sources)
    for s, (letter, name) in enumerate(zip("ABCDEFGH", names, strict=False)):
        tokenizer = load_fast_tokenizer(
            store.sources[s]["name"],
            revision=store.sources[s].get("revision"),
            token=token,
            trust_remote_code=trust_remote_code,
        )
        active = {pair.position: 1.0}
        contexts[f"{letter} {name}"] = mark_tokens(window, s, active, pair.position, tokenizer)
    return ShownPair(
        number, pair.text_id, pair.dataset, list(pair.characters), pair.token_ids, contexts
    )
