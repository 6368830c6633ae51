"""Training crosscoders on a stream of activation pairs.

`CrosscoderTrainer.fit` reads like the method: normalise, leave out outliers, select, reconstruct,
revive dead latents, clip, step, count. What a run leaves behind is in `run_folder`.
"""

from __future__ import annotations

import copy
import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import sparsify
import torch
import torch.distributed as dist
from schedulefree import ScheduleFreeWrapper
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from ..config import CrosscoderTrainConfig
from ..crosscoders import (
    Batch,
    Crosscoder,
    CrosscoderOutput,
    DedicatedFeatureCrosscoder,
    DesignatedSharedFeatureCrosscoder,
    ResidualDedicatedFeatureCrosscoder,
    kernels,
)
from ..crosscoders.float32 import full_precision
from ..hardware import has_native_bfloat16
from ..records import reading
from ..registry import Architecture
from ..store.normalization import (
    estimate_normalization,
    geometric_median,
    median_norms,
    within_norm,
)
from ..surroundings import wandb_is_set_up
from ..world import current_world
from .data import PairedData, check_length
from .metrics import evaluate
from .optimizers import make_optimizers, take_step
from .run_folder import RunFolder
from .step_log import StepLog

HISTOGRAM_BINS = 50


class CrosscoderTrainer(sparsify.Trainer):
    """sparsify's Trainer for pairs of activations.

    Keeps its checkpoint layout, k schedule, optimizers, DDP reductions and W&B names.

    Args:
        cfg: the run's options; None in the schedule is replaced by what fits the run's length.
        data: the pairs to train on and to evaluate on.
        device: where the crosscoders live.
        coder_class: what to train, the class of this trainer if left out.

    Raises ValueError if the data do not suffice for the steps asked, or the configuration does
    not fit the sources.
    """

    coder_class: ClassVar[type[Crosscoder]] = Crosscoder

    def __init__(
        self,
        cfg: CrosscoderTrainConfig,
        data: PairedData,
        device: str | torch.device = "cpu",
        *,
        coder_class: type[Crosscoder] | None = None,
    ):
        self.cfg: CrosscoderTrainConfig = cfg
        self.data = data
        self.device = torch.device(device)
        self.world = current_world()
        self.module_plan = []

        self.total_steps = check_length(cfg, data.train.num_pairs)
        cfg.resolve_schedule(self.total_steps)

        hookpoints = "+".join(source["hookpoint"] for source in data.sources)
        widths = [source["width"] for source in data.sources]
        self.saes: dict[str, Crosscoder] = {}
        cuda = [self.device] if self.device.type == "cuda" else []
        for seed in cfg.init_seeds:
            name = f"{hookpoints}/seed{seed}" if len(cfg.init_seeds) > 1 else hookpoints
            with torch.random.fork_rng(cuda):
                torch.manual_seed(seed)
                crosscoder = (coder_class or self.coder_class)(
                    widths, copy.deepcopy(cfg.sae), self.device, torch.float32, sources=data.sources
                )
            crosscoder.gradient_checkpointing = cfg.gradient_checkpointing
            self.saes[name] = crosscoder

        first = next(iter(self.saes.values()))
        self.final_k = cfg.sae.k
        assert cfg.initial_k is not None
        self.initial_k = min(max(cfg.initial_k, self.final_k), first.num_latents)
        self.global_step = 0
        self.pairs_trained = 0
        self.seconds_before = 0.0
        self.optimizers, self.lr_schedulers = self._make_optimizers()
        self.num_tokens_since_fired = {
            name: torch.zeros(sae.num_latents, device=self.device, dtype=torch.long)
            for name, sae in self.saes.items()
        }
        self.best_loss = {name: float("inf") for name in self.saes}
        self.dropped = {"outlier": 0}
        self.folder = RunFolder(Path(cfg.save_dir) / (cfg.run_name or "unnamed"))

    def local_hookpoints(self) -> list[str]:
        """Names of the crosscoders that this process trains: all of them."""
        return list(self.saes)

    def _make_optimizers(self) -> tuple[list[Any], list[Any]]:
        return make_optimizers(self.cfg, list(self.saes.values()), self.total_steps)

    # The run

    def fit(
        self, after_step: Callable[[], None] | None = None, *, show_progress: bool = True
    ) -> dict[str, Any]:
        """Train from `global_step` to the end, evaluate, and return the run's summary.

        `after_step` is called after every step, with `global_step` counting it. Until the training
        ends, in whatever way, no matrices are multiplied in TF32 but where an option says so.
        """
        with full_precision(self.device):
            return self._fit(after_step, show_progress)

    def _fit(self, after_step: Callable[[], None] | None, show_progress: bool) -> dict[str, Any]:
        kernels.start(self.device)
        rank_zero = self.world.rank == 0
        if rank_zero:
            resumed = self.global_step > 0 or getattr(self.cfg, "resume", False)
            self.folder.begin(
                self.cfg, self.global_step, resumed=resumed, trained_on=self.data.trained_on
            )
        wandb = self._start_wandb() if rank_zero else None
        started = time.monotonic()
        if self.global_step == 0:
            self._initialise()
        modules = self._wrapped()
        acc_steps = self.cfg.grad_acc_steps
        batches = self.data.train.batches(
            self.global_step * acc_steps, self.total_steps * acc_steps, self.cfg.pairs_per_step
        )
        progress = tqdm(
            desc="Training",
            total=self.total_steps,
            initial=self.global_step,
            disable=not (rank_zero and show_progress),
            unit="step",
        )
        log = StepLog(self.saes, self.world)
        while self.global_step < self.total_steps:
            self._set_k(self.get_current_k())
            for sae in self.saes.values():
                sae.train()
            log.begin_step()
            pairs = 0
            for _ in range(acc_steps):
                pairs += self._backward_batch(next(batches), modules, log)
            self._optimizer_step()
            self._count_dead(log, pairs)
            self.pairs_trained += pairs
            log.pairs += pairs
            self.global_step += 1
            progress.update()
            if after_step is not None:
                after_step()

            if self.global_step % self.cfg.log_every == 0 or self.global_step == self.total_steps:
                lines = self._lines(log)
                if self.cfg.save_best:
                    self.save_best({name: 1 - line["fve"] for name, line in lines.items()})
                for name, line in lines.items():
                    if rank_zero:
                        self.folder.log(line if len(self.saes) == 1 else {"name": name, **line})
                        self._log_wandb(wandb, name, line)
                    progress.set_postfix(
                        fve=f"{line['fve']:.3f}",
                        dead=f"{line['dead_fraction']:.1%}",
                        pairs_s=f"{line['pairs_per_second']:,.0f}",
                    )
            if self.global_step % self.cfg.save_every == 0 and self.global_step < self.total_steps:
                self.seconds_before += time.monotonic() - started
                started = time.monotonic()
                self.save()
        progress.close()
        self.seconds_before += time.monotonic() - started
        self.save()
        if wandb is not None:
            wandb.finish()
        return self._finish()

    def _lines(self, log: StepLog) -> dict[str, dict[str, Any]]:
        """One line of the log for each crosscoder."""
        lines = {}
        for name, measured in log.measured().items():
            dead, exclusive = self.dead_fractions(name)
            lines[name] = {
                "step": self.global_step,
                "pairs": self.pairs_trained,
                "fve": measured.fve,
                "fve_per_source": measured.fve_per_source,
                "auxk_loss": measured.auxk_loss * self.cfg.micro_acc_steps,
                "dead_fraction": dead,
                "dead_fraction_exclusive": exclusive,
                "k": self.get_current_k(),
                "l0": measured.l0,
                "lr": self.optimizers[0].param_groups[0]["lr"],
                "outliers": self.dropped["outlier"],
                "pairs_per_second": measured.pairs_per_second,
            }
        return lines

    def _start_wandb(self) -> Any:
        if not self.cfg.log_to_wandb or not wandb_is_set_up():
            return None
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            return None
        wandb.init(
            entity=os.environ.get("WANDB_ENTITY"),
            name=self.cfg.run_name,
            project=os.environ.get("WANDB_PROJECT", "sparsify"),
            config=self.cfg.to_dict(),
        )
        return wandb

    def _log_wandb(self, wandb: Any, name: str, line: dict[str, Any]) -> None:
        if wandb is None or self.global_step % self.cfg.wandb_log_frequency:
            return
        info = {f"dead_pct/{name}": line["dead_fraction"], f"fvu/{name}": 1 - line["fve"]}
        info |= {f"fve_{s}/{name}": fve for s, fve in enumerate(line["fve_per_source"])}
        if self.cfg.auxk_alpha > 0:
            info[f"auxk/{name}"] = line["auxk_loss"]
        wandb.log({**info, "k": line["k"]}, step=self.global_step)

    def _initialise(self) -> None:
        """Estimate the normalisation and the decoder bias from the first pairs, and prepare."""
        if self.cfg.finetune:
            return
        sample = [x.to(self.device) for x in self.data.train.sample(self.cfg.normalization_pairs)]
        medians = median_norms(sample, self.world)
        keep = within_norm(sample, self.cfg.outlier_multiple, self.world)
        sample = [x[keep] for x in sample]
        if self.cfg.normalization == "none":
            means = [x.new_zeros(x.shape[1], dtype=torch.float32) for x in sample]
            factors = torch.ones(len(sample), device=self.device)
        else:
            means, factors = estimate_normalization(
                sample,
                centred=self.cfg.normalization == "centred",
                target=self.cfg.normalization_target,
                world=self.world,
            )
        bias = None
        for sae in self.saes.values():
            sae.set_normalization(means, factors)
            sae.median_norms.copy_(medians)
            if bias is None:
                bias = geometric_median(sae.normalize(sample), self.world)
            sae.b_dec.data.copy_(bias)
        for sae in self.saes.values():
            sae.prepare(partial(self.first_pairs, sae), self.world)

    def first_pairs(self, sae: Crosscoder, num_pairs: int | None) -> Iterator[Tensor]:
        """See `crosscoders.FirstPairs`."""
        size = self.cfg.pairs_per_step
        wanted = self.cfg.normalization_pairs if num_pairs is None else num_pairs
        steps = -(-min(wanted, self.data.train.num_pairs) // size)
        for batch in self.data.train.batches(0, steps, size):
            batch = [x.to(self.device) for x in batch]
            keep = within_norm(batch, self.cfg.outlier_multiple, self.world)
            yield sae.normalize([x[keep] for x in batch])

    def _wrapped(self) -> dict[str, Any]:
        if self.world.size == 1:
            return dict(self.saes)
        ids = [self.device.index or 0] if self.device.type == "cuda" else None
        # Buffers come of sums over all ranks, so they are equal; maps of a residual DFC are large.
        options: Any = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
        return {
            name: DistributedDataParallel(sae, device_ids=ids, **options)
            for name, sae in self.saes.items()
        }

    def _set_k(self, k: int) -> None:
        for sae in self.saes.values():
            sae.cfg.k = k

    # One step

    def _backward_batch(self, batch: list[Tensor], modules: dict[str, Any], log: StepLog) -> int:
        """Add one batch's gradient to every crosscoder; return its pairs over all ranks."""
        batch = [x.to(self.device) for x in batch]
        keep = within_norm(batch, self.cfg.outlier_multiple, self.world)
        batch = [x[keep] for x in batch]
        kept_pairs = self.world.total(len(batch[0]), self.device)
        self.dropped["outlier"] += self.world.total(len(keep), self.device) - kept_pairs
        if not kept_pairs:
            raise ValueError(f"Every pair of step {self.global_step}'s batch is an outlier.")
        for name, sae in self.saes.items():
            x = sae.normalize(batch)
            mean = self.world.sum(x.sum(0)) / kept_pairs
            variance = self.world.sum(kernels.squared_distances(x, mean, sae.d_sources))
            log.variances[name] += variance
            dead_mask = None
            if self.cfg.auxk_alpha > 0:
                dead_mask = self.num_tokens_since_fired[name] > self.cfg.dead_feature_threshold
            self._backward(name, modules[name], x, dead_mask, variance.sum(), kept_pairs, log)
        return kept_pairs

    def _backward(
        self,
        name: str,
        module: Any,
        x: Tensor,
        dead_mask: Tensor | None,
        variance: Tensor,
        pairs: int,
        log: StepLog,
    ) -> None:
        sae, world = self.saes[name], self.world
        micro = self.cfg.micro_acc_steps
        chunks = x.tensor_split(micro)
        with self._autocast():
            cuts = sae.find_cuts(chunks, world) if micro > 1 else None
        for i, chunk in enumerate(chunks):
            with ExitStack() as stack:
                if world.size > 1 and i < micro - 1:
                    stack.enter_context(module.no_sync())
                with self._autocast():
                    out: CrosscoderOutput = module(
                        chunk,
                        normalized=True,
                        dead_mask=dead_mask,
                        # DDP averages the ranks' gradients; dividing by a rank's share sums them.
                        total_variance=variance / world.size,
                        batch=Batch(pairs / world.size, cuts, world),
                        padded=False,
                    )
                    loss = out.loss + self.cfg.auxk_alpha * out.auxk_loss
                (loss / self.cfg.grad_acc_steps).backward()
            log.add(name, out)
        assert self.cfg.threshold_start_step is not None and self.cfg.threshold_decay is not None
        if self.global_step >= self.cfg.threshold_start_step:
            sae.update_threshold(out.cuts if cuts is None else cuts, self.cfg.threshold_decay)

    def _autocast(self) -> Any:
        if self.device.type == "cuda" and has_native_bfloat16(self.device):
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()

    def _optimizer_step(self) -> None:
        take_step(self.optimizers, list(self.saes.values()), self.cfg.grad_clip)
        for scheduler in self.lr_schedulers:
            scheduler.step()

    @torch.no_grad()
    def _count_dead(self, log: StepLog, pairs: int) -> None:
        for name, since in self.num_tokens_since_fired.items():
            # gloo cannot reduce booleans.
            fired = self.maybe_all_reduce(log.fired[name].to(torch.uint8), "max")
            since += pairs
            since[fired.bool()] = 0

    # Results

    def dead(self, name: str) -> Tensor:
        """Latents that did not fire in the last `dead_window` pairs, `[M]`."""
        return self.num_tokens_since_fired[name] >= self.dead_window

    @property
    def dead_window(self) -> int:
        """Pairs without firing that make a latent dead: the threshold, or the whole run so far."""
        return max(min(self.cfg.dead_feature_threshold, self.pairs_trained), 1)

    def dead_fractions(self, name: str) -> tuple[float, list[float | None]]:
        """Dead share of all latents, and of each source's exclusive block if it has one."""
        dead, partition = self.dead(name).float(), self.saes[name].partition
        blocks = [partition.exclusive(s) for s in range(partition.num_sources)]
        exclusive = [dead[b.start : b.stop].mean().item() if len(b) else None for b in blocks]
        return dead.mean().item(), exclusive

    def _finish(self) -> dict[str, Any]:
        for optimizer in self.optimizers:
            if isinstance(optimizer, ScheduleFreeWrapper):
                optimizer.eval()
        summaries: dict[str, Any] = {}
        for name, sae in self.saes.items():
            if self.data.held_out is not None and self.data.held_out.num_pairs:
                result: dict[str, Any] = evaluate(
                    sae, self.data.held_out, self.cfg.outlier_multiple, world=self.world
                )
            else:
                result = dict.fromkeys(
                    (
                        "fve",
                        "fve_per_source",
                        "fve_without_top5_per_source",
                        "fve_with_outliers",
                        "fve_per_source_with_outliers",
                        "exclusive_judgeable",
                        "mean_l0",
                    )
                )
            dead, exclusive = self.dead_fractions(name)
            counts = torch.histc(sae.relative_decoder_norm().float().cpu(), HISTOGRAM_BINS, 0, 1)
            summaries[name] = {
                "arch": sae.arch,
                **result,
                "dead_fraction": dead,
                "dead_fraction_exclusive": exclusive,
                "dead_window": self.dead_window,
                "exclusive_latents": [
                    len(sae.partition.exclusive(s)) or None for s in range(len(sae.d_sources))
                ],
                "pairs": self.pairs_trained,
                "steps": self.global_step,
                "wall_seconds": self.seconds_before,
                "num_latents": sae.num_latents,
                "k": sae.cfg.k,
                "partition": sae.partition.sizes,
                **sae.fitted(),
                "sources": sae.sources,
                "relative_decoder_norm": {
                    "edges": torch.linspace(0, 1, HISTOGRAM_BINS + 1).tolist(),
                    "counts": [int(c) for c in counts],
                },
                "init_seed": self.cfg.init_seeds[list(self.saes).index(name)],
                "data": self.data.describe(),
                "dropped_in_training": dict(self.dropped),
            }
        summary = next(iter(summaries.values()))
        if len(summaries) > 1:
            summary = {**summary, "runs": summaries}
        if self.world.rank == 0:
            self.folder.write_summary(summary)
        if dist.is_initialized():
            dist.barrier()
        return summary

    # Checkpoints

    def _checkpoint(self, saes: dict[str, Any], path: str, rank_zero: bool) -> None:
        folder = RunFolder(Path(path))
        if folder.holds_checkpoint(self.global_step):
            # A finished run that was resumed; it may have been killed before it published.
            return folder.publish(self.global_step, list(saes))
        k = self.get_current_k()
        self._set_k(self.final_k)
        extra = {
            "pairs_trained": self.pairs_trained,
            "seconds": self.seconds_before,
            "dropped": self.dropped,
        }
        new_checkpoint = folder.new_checkpoint(self.global_step, list(saes), extra)
        with new_checkpoint as temporary, redirect_stdout(io.StringIO()):
            super()._checkpoint(saes, str(temporary), rank_zero)
        self._set_k(k)

    def load_state(self, path: str) -> None:
        """Continue a run from the last whole checkpoint in its folder.

        Raises FileNotFoundError if there is none, ValueError if a file of it is damaged.
        """
        folder = RunFolder(Path(path))
        state = folder.load_checkpoint(list(self.saes), self.device)
        with reading(folder.newest_checkpoint() or path, folder.restore):
            self._take(state)
        if self.world.rank == 0:
            print(f"Resuming training at step {self.global_step} from '{path}'")

    def _take(self, state: dict[str, Any]) -> None:
        self.global_step = state["global_step"]
        self.pairs_trained = state["pairs_trained"]
        self.seconds_before = state["seconds"]
        self.dropped = state["dropped"]
        self.best_loss = state["best_loss"]
        for name, counts in state["num_tokens_since_fired"].items():
            self.num_tokens_since_fired[name] = counts
        # A schedule-free optimizer saves its averaged weights: they are loaded as such.
        schedule_free = [o for o in self.optimizers if isinstance(o, ScheduleFreeWrapper)]
        for optimizer in schedule_free:
            optimizer.eval()
        for name, sae in self.saes.items():
            sae.load_state_dict(state["weights"][name])
        for scheduler, saved in zip(self.lr_schedulers, state["lr_schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for optimizer in schedule_free:
            optimizer.train()


class DFCTrainer(CrosscoderTrainer):
    """Trains Dedicated Feature Crosscoders."""

    coder_class = DedicatedFeatureCrosscoder


class RDFCTrainer(DFCTrainer):
    """Trains residual DFCs."""

    coder_class = ResidualDedicatedFeatureCrosscoder


class DSFTrainer(CrosscoderTrainer):
    """Trains Designated Shared Feature crosscoders."""

    coder_class = DesignatedSharedFeatureCrosscoder


def make_trainer(
    architecture: Architecture,
    cfg: CrosscoderTrainConfig,
    data: PairedData,
    device: str | torch.device = "cpu",
) -> CrosscoderTrainer:
    """The trainer of an architecture: its own, or the one that serves all."""
    trainer_class = architecture.trainer_class or CrosscoderTrainer
    return trainer_class(cfg, data, device, coder_class=architecture.coder_class)
