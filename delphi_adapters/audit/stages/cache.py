"""Where the crosscoder's latents fire, in delphi's files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..outcome import Cost, Outcome
from ..runner import Record
from ..stage import TEXTS, Context, Stage
from .harvest import num_pairs
from .train import dictionary_size

if TYPE_CHECKING:
    from ...delphi.crosscoder_cache import CrosscoderLatentCache

RAW = "latents"


@dataclass
class CacheOptions:
    """What of the texts is cached, and how."""

    source: int = 0
    """whose tokens the judge reads ({default})"""

    cache_ctx_len: int = 256
    """tokens of a row ({default})"""

    cache_windows: int | None = None
    """windows of the text to cache (all)"""


class Cache(Stage[CacheOptions, "CrosscoderLatentCache"]):
    """Writes delphi's cache, and reads it back."""

    name = "cache"
    what = "where its latents fire, in delphi's files"
    needs = ("train",)
    Options = CacheOptions
    group = TEXTS

    def inputs(self, ctx: Context) -> dict[str, Any]:
        return asdict(self.options)

    def estimate(self, ctx: Context) -> Cost:
        (latents, width), pairs = dictionary_size(ctx), num_pairs(ctx)
        return Cost(2 * ctx.quantities.seconds(2 * latents * width * pairs), {"pairs": pairs})

    def run(self, ctx: Context, folder: Path) -> Outcome:
        cache = self._cache(ctx, folder)
        cache.complete()
        statistics = cache.statistics
        files = sorted(file for file in cache.writer.folder.rglob("*") if file.is_file())
        return Outcome(
            {
                "tokens": cache.writer.num_tokens,
                "activations": int(statistics.firings.sum()),
                "dead": int(statistics.dead.sum()),
            },
            files,
            identity=[
                cache.writer._settings,
                statistics.firings.tolist(),
                statistics.max_activation.tolist(),
            ],
        )

    def output(self, ctx: Context, folder: Path, record: Record) -> CrosscoderLatentCache:
        return self._cache(ctx, folder)

    def _cache(self, ctx: Context, folder: Path) -> CrosscoderLatentCache:
        from ...delphi.crosscoder_cache import run_cache

        asked = self.options
        return run_cache(
            *(ctx.run, ctx.crosscoder, folder / RAW, asked.source),
            ctx_len=asked.cache_ctx_len,
            windows=asked.cache_windows,
        )


def alive(ctx: Context, latents: list[int]) -> list[int]:
    """Those of the latents that fire on the cached text."""
    dead = ctx.output(Cache).statistics.dead
    return [latent for latent in latents if not dead[latent]]
