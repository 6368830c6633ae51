"""What a crosscoder's latents do on a text, in delphi's cache files (B.4.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sparsify import SparseCoder
from torch import Tensor
from tqdm.auto import tqdm
from xxhash import xxh3_64

from sparsify_crosscoder.crosscoders import Crosscoder, SparseCode
from sparsify_crosscoder.evaluation.top import Snippet, mark_tokens
from sparsify_crosscoder.runs.run import Run
from sparsify_crosscoder.store.normalization import within_norm

from .latent_cache import CacheLayout, LatentCacheWriter
from .latent_statistics import NUM_CONTEXTS, LatentStatistics
from .run_text import RunText

if TYPE_CHECKING:
    from delphi.latents import LatentDataset

WINDOWS_PER_PART = 16


@dataclass(frozen=True)
class CacheOptions:
    """What of a text is cached, and how it is divided."""

    ctx_len: int = 256
    """Tokens of each row of delphi's."""

    n_splits: int = 5
    """Files that the latents are divided among."""

    outlier_multiple: float = 2.0
    """Pairs with a norm above so many medians are left out; 0 keeps all. Give the run's."""

    windows: int | None = None
    """How many of the text's windows to cache, all if None."""

    def __post_init__(self):
        if self.windows is not None and self.windows < 1:
            raise ValueError(f"windows must be at least 1, got {self.windows}.")


class CrosscoderLatentCache:
    """Runs texts through both models and a crosscoder, and writes delphi's latent cache.

    Latents are shown on the tokens of one source, B.4.1's common representation: where several
    models' tokens end together, the activation is at that source's token. All other tokens have
    none. Outliers are left out, as in training (B.1.4): by the crosscoder's `median_norms`, or, if
    it has none and for a plain SAE, by the median of each part.

    A plain sparsify SAE instead of the crosscoder reads the tokens of `source` alone.

    Args:
        coder: the crosscoder or SAE, whose device the encoding is done on.
        text: windows and activations, for example `RunText.of_run(run, device)`.
        folder: delphi's raw directory; a cache that was begun there is continued.
        source: whose tokens the latents are shown on.
        latents: those to keep; all by default.
        options: what of the text, and how it is divided.
        name: of the coder, kept in the cache's settings beside a digest of its weights; without
            one the digest alone says whose cache it is.

    Raises ValueError if the folder holds a cache of other settings.
    """

    def __init__(
        self,
        coder: SparseCoder,
        text: RunText,
        folder: Path | str,
        *,
        source: int = 0,
        latents: Tensor | None = None,
        options: CacheOptions = CacheOptions(),
        name: str | None = None,
    ):
        if not 0 <= source < len(text.tokenizers):
            raise ValueError(f"There are sources 0..{len(text.tokenizers) - 1}, not {source}.")
        self.coder, self.text, self.source = coder, text, source
        self.folder = Path(folder)
        self.outlier_multiple = options.outlier_multiple
        self.num_windows = min(options.windows or len(text.windows), len(text.windows))
        self._columns = [f"input_ids_{source}", f"pairs_{source}"]
        self._windows = text.windows.select_columns(self._columns)
        layout = CacheLayout(
            text.hookpoints[source], coder.num_latents, options.ctx_len, options.n_splits
        )
        self.writer = LatentCacheWriter(
            folder,
            layout,
            {
                **({} if name is None else {"coder": name}),
                "weights": digest(coder),
                "source": source,
                "text": text.fingerprint,
                "windows": self.num_windows,
                "windows_per_part": WINDOWS_PER_PART,
                "outlier_multiple": options.outlier_multiple,
            },
            latents,
        )

    @property
    def statistics(self) -> LatentStatistics:
        """Firing counts, largest activations and strongest contexts of all latents."""
        return self.writer.statistics

    def complete(self) -> None:
        """Write and verify what is missing; nothing if the cache is whole."""
        if not self.writer.finished:
            self.run()
            self.verify()

    @torch.no_grad()
    def run(self, *, show_progress: bool = True) -> LatentStatistics:
        """Encode what is missing, and write delphi's files when all is there."""
        if self.writer.finished:
            return self.statistics
        was_training = self.coder.training
        self.coder.eval()
        try:
            starts = range(0, self.num_windows, WINDOWS_PER_PART)
            progress = tqdm(
                total=self.num_windows,
                initial=min(self.writer.num_parts * WINDOWS_PER_PART, self.num_windows),
                desc="Caching latents",
                unit="window",
                disable=not show_progress,
            )
            for start in starts[self.writer.num_parts :]:
                stop = min(start + WINDOWS_PER_PART, self.num_windows)
                self._add(start, stop)
                progress.update(stop - start)
            progress.close()
        finally:
            self.coder.train(was_training)
        self.writer.finish(self._config())
        return self.statistics

    def _add(self, start: int, stop: int) -> None:
        """Encode windows start..stop as one part."""
        rows = self._windows[start:stop]
        ids, pairs = (rows[column] for column in self._columns)
        counts = np.array([len(p) for p in pairs])
        firsts = np.cumsum([0, *(len(i) for i in ids)])
        positions = np.concatenate(pairs) + np.repeat(firsts[:-1], counts)
        windows = np.repeat(np.arange(start, stop), counts)
        numbers = np.arange(len(positions)) - np.repeat(np.cumsum(counts) - counts, counts)

        raw = self.text.read(start, stop)
        medians = getattr(self.coder, "median_norms", None)
        keep = within_norm(raw, self.outlier_multiple, medians=medians)
        code = self._encode([x[keep] for x in raw])
        kept = keep.cpu()
        self.writer.add(
            code,
            torch.from_numpy(np.concatenate(ids)),
            *(torch.from_numpy(x)[kept] for x in (positions, windows, numbers)),
        )

    def _encode(self, raw: list[Tensor]) -> SparseCode:
        coder = self.coder
        if isinstance(coder, Crosscoder):
            return coder.encode_sparse([x.to(coder.device, coder.dtype) for x in raw])
        return sae_code(coder, raw[self.source])

    def _config(self) -> dict[str, Any]:
        from delphi.config import CacheConfig

        layout = self.writer.layout
        config = CacheConfig(cache_ctx_len=layout.ctx_len, n_splits=layout.n_splits)
        return {**config.to_dict(), "model_name": self.text.models[self.source]}

    def dataset(
        self, sampler_cfg: Any = None, constructor_cfg: Any = None, latents: Tensor | None = None
    ) -> LatentDataset:
        """delphi's dataset of the cached latents, all or some, ready for its pipeline."""
        return open_dataset(
            self.folder,
            self.writer.layout.hookpoint,
            self.text.tokenizers[self.source],
            sampler_cfg,
            constructor_cfg,
            latents,
        )

    def contexts(self, latent: int, count: int = NUM_CONTEXTS) -> list[Snippet]:
        """Where a latent is strongest, at most once in a window, in every model's own tokens."""
        snippets = []
        places = zip(
            self.statistics.context_activations[latent].tolist(),
            self.statistics.context_pairs[latent].tolist(),
            strict=True,
        )
        for activation, (window, pair) in list(places)[:count]:
            if window < 0:
                break
            row = self.text.windows[window]
            texts = [
                mark_tokens(row, s, {pair: activation}, pair, tokenizer)
                for s, tokenizer in enumerate(self.text.tokenizers)
            ]
            snippets.append(Snippet(activation, int(row["text_id"]), texts))
        return snippets

    def verify(self) -> None:
        """Read the files back through delphi; raises ValueError if they hold other activations."""
        counts = np.zeros_like(self.statistics.firings)
        largest = np.zeros_like(self.statistics.max_activation)
        for latent, data in self._read_back():
            counts[latent] = len(data.activations)
            largest[latent] = float(data.activations.max())
        cut_off = self.statistics.firings - counts
        rounded = self.statistics.max_activation.astype(np.float16)
        all_there = cut_off == 0
        if (cut_off < 0).any() or (largest[all_there] != rounded[all_there]).any():
            raise ValueError(f"delphi reads other activations from '{self.folder}' than written.")

    def _read_back(self) -> Iterator[tuple[int, Any]]:
        for buffer in self.dataset().buffers:
            for data in buffer:
                yield data.latent.latent_index, data.activation_data


def run_cache(
    run: Run,
    crosscoder: Crosscoder,
    folder: Path,
    source: int = 0,
    *,
    ctx_len: int = CacheOptions.ctx_len,
    windows: int | None = None,
) -> CrosscoderLatentCache:
    """The cache of a run's own texts, as far as it is there; raises ValueError as the class does,
    and where the run's models, texts or store have changed."""
    options = CacheOptions(
        ctx_len=ctx_len, windows=windows, outlier_multiple=run.config.outlier_multiple
    )
    text = RunText.of_run(run, crosscoder.device)
    return CrosscoderLatentCache(crosscoder, text, folder, source=source, options=options)


def digest(coder: SparseCoder) -> str:
    """Changes with the weights of a coder, and with nothing else."""
    hashed = xxh3_64()
    for name, value in coder.state_dict().items():
        hashed.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        hashed.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return hashed.hexdigest()


def sae_code(sae: SparseCoder, x: Tensor) -> SparseCode:
    """The code of a plain SAE on raw activations `[N, d]` of its model: its k of each row."""
    out = sae.encode(x.to(sae.device, sae.dtype))
    acts, indices = out.top_acts.float(), out.top_indices
    rows = torch.arange(len(x), device=acts.device).repeat_interleave(acts.shape[1])
    return SparseCode(acts.flatten(), indices.flatten(), rows, (len(x), sae.num_latents))


def open_dataset(
    folder: Path | str,
    hookpoint: str,
    tokenizer: Any,
    sampler_cfg: Any = None,
    constructor_cfg: Any = None,
    latents: Tensor | None = None,
) -> LatentDataset:
    """delphi's dataset over one module of a cache, with a tokenizer that it can mark tokens by."""
    from .compat import TokenwiseTokenizer

    from delphi.config import ConstructorConfig, SamplerConfig  # isort: skip
    from delphi.latents import LatentDataset  # isort: skip

    return LatentDataset(
        Path(folder),
        sampler_cfg or SamplerConfig(),
        constructor_cfg or ConstructorConfig(),
        tokenizer=TokenwiseTokenizer(tokenizer),  # type: ignore[arg-type]
        modules=[hookpoint],
        latents=None if latents is None else {hookpoint: latents.sort().values},
    )
