"""Stitching two models of a run together, on text that the run did not train on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from ..hardware import pick_device
from ..harvest.harvest import run_harvest
from ..harvest.model_identity import source_names
from ..harvest.source import Source
from ..runs.provenance import source_of_run
from ..runs.run import Run
from ..store.tensor_stream import TensorStream
from ..text.window_numbers import window_numbers
from .stitching import Stitching, check_folder, fit_stitching
from .stitching_config import StitchingConfig, StitchText
from .unseen_text import unseen_text

PAIRS_PER_DIMENSION = 10  # fewer, and a linear map learns the noise of its pairs
MUCH = 0.01  # of R2


def stitch(
    run: Run,
    config: StitchingConfig | None = None,
    text: StitchText | None = None,
    *,
    out: Path | None = None,
    device: str | torch.device | None = None,
) -> Stitching:
    """Fit an affine map from each of two of a run's models to the other.

    Without `config`, outliers are those of the run's training. What shares a passage with text that
    the run trained on is left out. With `out`, a folder, the
    stitching is saved there. Raises ValueError for sources that the run has not and for a folder
    that holds something else, TooLittleText where too little unseen text is left.
    """
    options, text = run.config, text or StitchText()
    cfg = config or StitchingConfig(outlier_multiple=options.outlier_multiple)
    names = [options.model, *options.partners]
    if max(cfg.sources) >= len(names):
        raise ValueError(f"The run has sources 0 to {len(names) - 1}, not {list(cfg.sources)}.")
    if out is not None:
        check_folder(out)
    device = pick_device(device)
    dataset = text.load(options)
    sources = run.sources(device)
    widths = [sources[s].width for s in cfg.sources]
    unseen = unseen_text(
        run,
        sources,
        pairs=text.pairs,
        least_pairs=min(text.pairs, PAIRS_PER_DIMENSION * max(widths)),
        held_out_pairs=text.held_out_pairs,
        dataset=dataset,
    )
    fitted, held_out = (
        _harvested(sources, unseen.windows, rows, options.batch_size)
        for rows in (unseen.fitted, unseen.held_out)
    )
    stitching = fit_stitching(
        TensorStream([x[: text.pairs] for x in fitted], seed=cfg.seed),
        TensorStream(held_out),
        cfg,
        sources=[source_of_run(source) for source in sources],
        text={
            "datasets": list(text.dataset) or [options.dataset, *options.extra_datasets],
            **unseen.facts,
        },
        device=device,
    )
    if out is not None:
        stitching.save(out)
    return stitching


def _harvested(
    sources: Sequence[Source], windows: Dataset, rows: Tensor, batch_size: int
) -> list[Tensor]:
    """Activations at all pairs of some windows, `[n, D_s]` per source, in memory."""
    counts = torch.from_numpy(window_numbers(windows, "num_pairs"))[rows]
    with tqdm(total=int(counts.sum()), desc="Harvesting", unit="pair") as bar:
        harvest = run_harvest(
            sources, windows, rows.tolist(), batch_size=batch_size, progress=bar.update
        )
    return harvest.activations


def stitching_text(stitching: Stitching) -> str:
    """What the text was, and how well both maps and both round trips do."""
    text, report, lines = stitching.text, stitching.report, []
    lines.append(
        f"Of {text['looked_at']:,} texts, {text['trained_on']:,} that the run trained on are left "
        f"out, {text['partly_trained_on']:,} that share a passage with those, and "
        f"{text['like_held_out']:,} that share one with held-out text."
    )
    lines.append(
        f"{report['pairs']:,} pairs of {text['texts_fitted']:,} texts fitted, "
        f"{report['held_out_pairs']:,} of {text['texts_held_out']:,} held out; R2 of these:"
    )
    numbers = stitching.cfg.sources
    names = dict(zip(numbers, source_names(stitching.sources), strict=True))
    rows = [(f"{names[d['from']]} to {names[d['to']]}", d) for d in report["directions"]]
    rows += [(f"{names[d['source']]} and back", d) for d in report["round_trips"]]
    width = max(len(name) for name, _ in rows)
    lines.append(f"{'':<{width}}  trained  closed form  difference  without top 5 (closed form)")
    for name, scores in rows:
        lines.append(
            f"{name:<{width}}  {_number(scores['r2'])}  {_number(scores['r2_closed_form']):>11}  "
            f"{_number(scores['difference']):>10}  {_number(scores['r2_without_top5'])} "
            f"({_number(scores['r2_without_top5_closed_form']).strip()})"
        )

    worst = min(d["difference"] or 0.0 for d in report["directions"])
    if worst < -MUCH:
        lines.append(
            f"The trained maps explain up to {-worst:.4f} less than the closed form: lower "
            f"--inversion_weight for maps that are less nearly inverse and explain more."
        )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.4f'):>7}"
