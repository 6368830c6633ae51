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
    """whose tokens the judge reads"""

    cache_ctx_len: int = 256
    """tokens of a row"""

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
        if not cache.writer.finished:
            cache.run()
            cache.verify()
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
        from ...delphi.crosscoder_cache import CacheOptions as LatentCacheOptions
        from ...delphi.crosscoder_cache import CrosscoderLatentCache
        from ...delphi.run_text import RunText

        text = RunText.of_run(
            ctx.run.path,
            ctx.device,
            ctx.config.hf_token,
            trust_remote_code=ctx.config.trust_remote_code,
        )
        return CrosscoderLatentCache(
            ctx.crosscoder,
            text,
            folder / RAW,
            source=self.options.source,
            options=LatentCacheOptions(
                ctx_len=self.options.cache_ctx_len,
                windows=self.options.cache_windows,
                outlier_multiple=ctx.run.config.outlier_multiple,
            ),
        )


def alive(ctx: Context, latents: list[int]) -> list[int]:
    """Those of the latents that fire on the cached text."""
    dead = ctx.output(Cache).statistics.dead
    return [latent for latent in latents if not dead[latent]]
