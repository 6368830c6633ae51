"""Training every variant, size and seed of a toy benchmark, one row of results each."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...config import CrosscoderTrainConfig
from ...crosscoders import Crosscoder
from ...files import atomic_path, atomic_write_json
from ...records import read_json, read_lines
from ...registry import get_architecture
from ...training.allocator import keep_freed_memory
from ...training.data import PairedData
from ...training.trainer import make_trainer
from ..false_exclusives import FilterConfig, judge_exclusives
from ..latent_moments import encoded
from .metrics import score
from .model import ToyModel
from .presets import VARIANTS, Preset
from .stream import ToyStream

ROWS, SETTINGS, SNAPSHOTS = "rows.jsonl", "settings.json", "snapshots.jsonl"
_TRAINING, _EVALUATION = 1, 2  # seeds of a toy model's streams


class _Result(TypedDict):
    variant: str
    size: float
    seed: int
    scores: dict[str, Any]
    scores_filtered: dict[str, Any]
    snapshots: list[dict[str, Any]]


class _Snapshot(TypedDict):
    step: int


@dataclass(frozen=True)
class Row:
    """One run of a benchmark."""

    variant: str
    size: float
    """Latents as a multiple of the number of concepts."""

    seed: int

    def __str__(self) -> str:
        return f"{self.variant}@{self.size:g}x-seed{self.seed}"


def rows_of(
    preset: Preset,
    seeds: Iterable[int],
    variants: Iterable[str] | None = None,
    sizes: Iterable[float] | None = None,
) -> list[Row]:
    """All rows, in the order in which they are run: whole seeds one after the other.

    Raises ValueError where a variant is unknown or a size too small.
    """
    names = list(preset.variants if variants is None else variants)
    unknown = sorted(set(names) - set(VARIANTS))
    if unknown:
        raise ValueError(f"Unknown variant(s) {unknown}; there are {sorted(VARIANTS)}.")
    chosen = list(preset.sizes if sizes is None else sizes)
    for size in chosen:
        if round(size * preset.toy.num_concepts) < preset.k:
            raise ValueError(
                f"A size of {size:g} latents per concept gives fewer than the {preset.k} latents "
                f"that are active per pair; choose a larger one."
            )
    return [Row(name, size, seed) for seed in seeds for size in chosen for name in names]


def run_grid(
    preset: Preset, rows: Iterable[Row], out: Path, *, jobs: int = 1, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Run the rows that `out/rows.jsonl` does not hold yet; return the results of all `rows`.

    A row is added when it is finished, so a run that was stopped goes on where it was. Raises
    ValueError if `out` holds a benchmark of other settings.
    """
    rows = list(rows)
    out.mkdir(parents=True, exist_ok=True)
    _check_settings(preset, out)
    done = {row_of(result): result for result in read_rows(out)}
    missing = [row for row in rows if row not in done]
    progress = tqdm(total=len(rows), initial=len(rows) - len(missing), unit="run", desc="Toy runs")
    with (out / ROWS).open("a", encoding="utf-8") as file:
        for result in _results(preset, missing, out, jobs, device):
            file.write(json.dumps(result) + "\n")
            file.flush()
            os.fsync(file.fileno())
            done[row_of(result)] = result
            progress.set_postfix_str(str(row_of(result)))
            progress.update()
    progress.close()
    return [done[row] for row in rows]


def row_of(result: dict[str, Any]) -> Row:
    return Row(result["variant"], result["size"], result["seed"])


def read_rows(out: Path) -> list[dict[str, Any]]:
    """The results in a benchmark's folder; a last line that was cut off is removed."""
    file = out / ROWS
    if not file.exists():
        return []
    rows = read_lines(file, _Result, "Restore it, or delete it: its runs are then scored again.")
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        with atomic_path(file) as temporary:
            temporary.write_bytes(whole)
    return rows[: whole.count(b"\n")]


def _check_settings(preset: Preset, out: Path) -> None:
    settings = json.loads(json.dumps(asdict(preset)))
    # Which rows are run may differ from call to call.
    comparable = {k: v for k, v in settings.items() if k not in ("sizes", "variants", "num_seeds")}
    file = out / SETTINGS
    if file.exists():
        found = read_json(file, dict, f"Restore it, or delete the folder '{out}' and run again.")
        different = sorted(k for k in comparable if found.get(k) != comparable[k])
        if different:
            raise ValueError(
                f"'{out}' holds a toy benchmark with other settings ({', '.join(different)}). "
                f"Choose another --out, or delete the folder."
            )
    else:
        atomic_write_json(file, comparable)


def _results(
    preset: Preset, rows: list[Row], out: Path, jobs: int, device: str
) -> Iterator[dict[str, Any]]:
    if jobs <= 1 or len(rows) <= 1:
        for row in rows:
            yield run_row(preset, row, out, device)
        return
    context = _starting()
    with ProcessPoolExecutor(jobs, context, _start_worker) as pool:
        waiting = [pool.submit(run_row, preset, row, out, device) for row in rows]
        try:
            for finished in as_completed(waiting):
                yield finished.result()
        except BaseException:
            # What they have in hand goes on from its checkpoint the next time.
            for worker in multiprocessing.active_children():
                worker.terminate()
            pool.shutdown(cancel_futures=True)
            raise


def _starting() -> BaseContext:
    """How workers begin: forked from a process that has imported this module, where that can be."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers
    torch.set_num_threads(1)
    keep_freed_memory()


def run_row(preset: Preset, row: Row, out: Path, device: str = "cpu") -> dict[str, Any]:
    """Train and score one row; its run folder is `out/runs/<row>`."""
    started = time.monotonic()
    toy = ToyModel(preset.toy, row.seed, device)
    folder = out / "runs" / str(row)
    crosscoder, summary, snapshots = _train(preset, row, toy, folder, device)
    stream = ToyStream(toy, preset.evaluation_pairs, _stream_seed(row, _EVALUATION))
    alive = firing_counts(crosscoder, stream) > 0
    filtered = judge_exclusives(crosscoder, stream, FilterConfig(pairs=stream.num_pairs))
    kept = [filtered.kept(s) for s in range(preset.toy.num_sources)]
    return {
        "variant": row.variant,
        "size": row.size,
        "seed": row.seed,
        "num_latents": crosscoder.num_latents,
        "k": preset.k,
        "scores": score(crosscoder, toy, alive=alive).to_dict(),
        "scores_filtered": score(crosscoder, toy, kept, alive=alive).to_dict(),
        "verdicts": filtered.counts(),
        "alive": int(alive.sum()),
        "fve": summary["fve"],
        "fve_per_source": summary["fve_per_source"],
        "snapshots": snapshots,
        "training_seconds": summary["wall_seconds"],
        "seconds": time.monotonic() - started,
    }


def _stream_seed(row: Row, purpose: int) -> int:
    return row.seed * 4 + purpose


def firing_counts(crosscoder: Crosscoder, stream: ToyStream) -> Tensor:
    """On how many pairs of a stream every latent fires at inference, `[M]`."""
    counts = torch.zeros(crosscoder.num_latents, dtype=torch.long)
    for batch in encoded(crosscoder, stream, torch.arange(crosscoder.num_latents)):
        counts += torch.bincount(batch.code.indices.cpu(), minlength=crosscoder.num_latents)
    return counts


def _train(
    preset: Preset, row: Row, toy: ToyModel, folder: Path, device: str
) -> tuple[Crosscoder, dict[str, Any], list[dict[str, Any]]]:
    variant = VARIANTS[row.variant]
    architecture = get_architecture(variant.arch)
    num_latents = round(row.size * preset.toy.num_concepts)
    cfg = CrosscoderTrainConfig(
        sae=architecture.config_class(num_latents=num_latents, k=preset.k, **variant.options),
        lr=preset.lr,
        pairs_per_step=preset.pairs_per_step,
        max_steps=preset.num_steps,
        held_out_pairs=0,
        dead_feature_threshold=preset.dead_after,
        normalization_pairs=16_384,
        init_seeds=[row.seed],
        save_dir=str(folder.parent),
        run_name=folder.name,
        save_every=max(preset.num_steps // 10, 1),
        log_every=max(preset.num_steps // 20, 1),
        log_to_wandb=False,
    )
    num_pairs = preset.num_steps * preset.pairs_per_step
    data = PairedData(
        ToyStream(toy, num_pairs, _stream_seed(row, _TRAINING)),
        ToyStream(toy, 32_768, _stream_seed(row, _EVALUATION)),
        [
            {"name": f"toy-{s}", "hookpoint": "toy", "width": preset.toy.width}
            for s in range(preset.toy.num_sources)
        ],
    )
    trainer = make_trainer(architecture, cfg, data, device)
    snapshots: list[dict[str, Any]] = []
    if trainer.folder.newest_checkpoint() is not None:
        with redirect_stdout(io.StringIO()):
            trainer.load_state(str(folder))
        snapshots = _read_snapshots(folder, trainer.global_step)
    (crosscoder,) = trainer.saes.values()
    every = max(preset.num_steps // preset.num_snapshots, 1)

    def after_step() -> None:
        if trainer.global_step % every == 0:
            found = score(crosscoder, toy)
            snapshot = {
                "step": trainer.global_step,
                "pairs": trainer.pairs_trained,
                "shared": found.shared_recovery,
                "exclusive": found.exclusive_recovery,
                "exclusive_recall": found.exclusive_recall,
            }
            snapshots.append(snapshot)
            with (folder / SNAPSHOTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(snapshot) + "\n")

    with redirect_stdout(io.StringIO()):
        summary = trainer.fit(after_step, show_progress=False)
    return crosscoder.eval(), summary, snapshots


def _read_snapshots(folder: Path, last_step: int) -> list[dict[str, Any]]:
    """The snapshots of a run up to a step, without those of steps that are taken again."""
    file = folder / SNAPSHOTS
    remedy = f"Restore it, or delete the folder '{folder}': the run then begins again."
    kept = [one for one in read_lines(file, _Snapshot, remedy) if one["step"] <= last_step]
    file.write_text("".join(json.dumps(s) + "\n" for s in kept), encoding="utf-8")
    return kept
