"""What one training step of a crosscoder costs, beside the same step written in other ways.

    python examples/benchmarks/training_step.py           all sizes, 25 minutes
    python examples/benchmarks/training_step.py --quick   small sizes, under two minutes

All ways run in turn in one process on one thread, on the same batches and from the same weights,
which have seen some training. On a CPU the time is that of the processor, on a GPU that between
CUDA events. The script ends with exit code 1 if a claim in `CLAIMS` does not hold; claims are for
the full sizes on a CPU. Peak memory is that of a process of its own for each way.

dense          dense [N, M] codes from one flat top-k, dense decoding, autograd, torch's own Adam
index_add      sparse codes as sparsify has them: `embedding_bag`, and for the encoder's gradient a
               row for each entry, added up by index_add
ours fp32      `Crosscoder`, clip and fused Adam
ours bf16      the same with its latents screened in bfloat16
sparsify       `sparsify.SparseCoder` on the concatenated sources: TopK of each row, no clip, and in
               its auxiliary loss half the joint width of latents instead of half the mean width

The first four do the same: norm-weighted BatchTopK, AuxK, gradient clip, Adam, and a counter of
dead latents.
"""

from __future__ import annotations

import importlib
import io
import os
from contextlib import contextmanager, nullcontext, redirect_stdout

if __name__ in ("__main__", "__mp_main__"):
    # One thread, so that the processor's time is comparable.
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with redirect_stdout(io.StringIO()):  # it prints whether there is Triton, in every process
        importlib.import_module("sparsify")

import argparse
import gc
import json
import multiprocessing
import platform
import re
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from time import process_time
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify_crosscoder import Crosscoder, CrosscoderConfig, DedicatedFeatureCrosscoder, DFCConfig
from sparsify_crosscoder.activations.normalization import estimate_normalization
from sparsify_crosscoder.crosscoders.preactivations import (
    BoundedPreactivations,
    ExactPreactivations,
)
from sparsify_crosscoder.training.allocator import keep_freed_memory

AUXK_ALPHA = 0.03
DEAD_AFTER = 10_000_000
LEARNING_RATE = 1e-4
WARMUP_STEPS, WARMUP_LEARNING_RATE = 40, 1e-3
TURN = 3
STEPS, QUICK_STEPS = 12, 3
STAGE_STEPS, QUICK_STAGE_STEPS = 5, 2
MEMORY_STEPS = 3
MEMORY_RUNS, QUICK_MEMORY_RUNS = 3, 1
HEAP_BYTES = 48 * 10**6
"""Freed memory that glibc keeps by default; it may be up to 64 MiB."""


@dataclass(frozen=True)
class Setting:
    """Sizes of one step."""

    widths: tuple[int, ...] = (576, 640)
    num_latents: int = 16_384
    batch: int = 1_024
    k: int = 64
    auxk: bool = False
    """With the auxiliary loss, and half the dictionary dead."""
    arch: str = "crosscoder"
    keep: bool = False
    """The process keeps freed memory, as the training command has it, whatever the variant."""

    def __str__(self) -> str:
        extra = (", AuxK, half dead" if self.auxk else "") + (", DFC" if self.arch == "dfc" else "")
        extra += ", freed memory kept" if self.keep else ""
        widths = "+".join(map(str, self.widths))
        return f"{widths}, M={self.num_latents:,}, batch {self.batch:,}, k={self.k}{extra}"

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Read `WIDTH+WIDTH/M/BATCH/K`, with `/auxk` or `/dfc` or both behind it."""
        try:
            widths, num_latents, batch, k, *options = text.split("/")
            if not set(options) <= {"auxk", "dfc"}:
                raise ValueError
            arch = "dfc" if "dfc" in options else "crosscoder"
            sizes = tuple(int(width) for width in widths.split("+"))
            return cls(sizes, int(num_latents), int(batch), int(k), "auxk" in options, arch)
        except ValueError:
            raise ValueError(
                f"'{text}' is neither one of {', '.join(SIZES)} nor of the form "
                f"576+640/16384/1024/64[/auxk][/dfc] (widths, latents, batch, k)."
            ) from None


AUXK_OFF = Setting()
AUXK_ON = Setting(auxk=True)
NARROW = Setting(widths=(256, 256), k=20)
PAPER = Setting((4096, 4096), 131_072, 2_048, 200)
LATENTS = tuple(replace(AUXK_OFF, num_latents=m) for m in (2_048, 4_096, 8_192, 16_384))
SIZES: dict[str, tuple[Setting, ...]] = {
    "auxk_off": (AUXK_OFF,),
    "auxk_on": (AUXK_ON,),
    "narrow": (NARROW,),
    "dfc": (replace(AUXK_OFF, arch="dfc"),),
    "kept": tuple(replace(one, keep=True) for one in (AUXK_OFF, AUXK_ON, NARROW)),
    "latents": LATENTS,
    "batch": tuple(replace(AUXK_OFF, batch=n) for n in (256, 512, 1_024, 2_048)),
    "k": tuple(replace(AUXK_OFF, k=k) for k in (16, 32, 64, 128)),
    "paper": (PAPER,),
}
SCALING = ("latents", "batch", "k")
QUICK = Setting(num_latents=2_048, batch=256, k=32)
QUICK_SIZES: dict[str, tuple[Setting, ...]] = {
    "auxk_off": (QUICK,),
    "auxk_on": (replace(QUICK, auxk=True),),
    "narrow": (Setting((256, 256), 2_048, 256, 20),),
    "dfc": (replace(QUICK, arch="dfc"),),
    "latents": (replace(QUICK, num_latents=1_024), QUICK),
}


class Claim(NamedTuple):
    """What the project says of its step: `found` of a report is at least `at_least`."""

    text: str
    settings: tuple[Setting, ...]
    found: Callable[[Mapping[str, Any]], float]
    at_least: float


def _ratio(setting: Setting, variant: str, against: str) -> Callable[[Mapping[str, Any]], float]:
    def found(report: Mapping[str, Any]) -> float:
        variants = report["settings"][str(setting)]["variants"]
        return variants[against]["median_ms"] / variants[variant]["median_ms"]

    return found


def _growth(variant: str) -> Callable[[Mapping[str, Any]], float]:
    def found(report: Mapping[str, Any]) -> float:
        first, last = (_ratio(LATENTS[i], variant, "dense")(report) for i in (0, -1))
        return last / first

    return found


def _memory(setting: Setting, variant: str) -> Callable[[Mapping[str, Any]], float]:
    def found(report: Mapping[str, Any]) -> float:
        variants = report["settings"][str(setting)]["variants"]
        return variants["dense"]["peak_bytes"] / variants[variant]["peak_bytes"]

    return found


def _worst_estimate(report: Mapping[str, Any]) -> float:
    """The estimate of memory that is furthest off, as a share of what was measured, at most 1."""
    shares = []
    for result in report["settings"].values():
        for name, expected in result.get("expected_bytes", {}).items():
            share = expected["peak"] / result["variants"][name]["peak_bytes"]
            shares.append(min(share, 1 / share))
    return min(shares)


CLAIMS = (
    Claim("fp32 against dense", (AUXK_OFF,), _ratio(AUXK_OFF, "ours fp32", "dense"), 4.5),
    Claim("bf16 against dense", (AUXK_OFF,), _ratio(AUXK_OFF, "ours bf16", "dense"), 7),
    Claim("bf16 against sparsify", (AUXK_OFF,), _ratio(AUXK_OFF, "ours bf16", "sparsify"), 2.5),
    Claim("bf16 against dense, AuxK", (AUXK_ON,), _ratio(AUXK_ON, "ours bf16", "dense"), 6),
    Claim("bf16 against dense, narrow", (NARROW,), _ratio(NARROW, "ours bf16", "dense"), 10),
    Claim("dense's peak memory against fp32", (AUXK_OFF,), _memory(AUXK_OFF, "ours fp32"), 1),
    Claim("dense's peak memory against bf16", (AUXK_OFF,), _memory(AUXK_OFF, "ours bf16"), 1),
    Claim("the same with AuxK", (AUXK_ON,), _memory(AUXK_ON, "ours bf16"), 1),
    Claim("ratio of fp32 at M=16,384 to that at 2,048", LATENTS, _growth("ours fp32"), 0.9),
    Claim("ratio of bf16 at M=16,384 to that at 2,048", LATENTS, _growth("ours bf16"), 0.9),
    Claim("estimate of memory against measured", (AUXK_OFF, AUXK_ON, NARROW), _worst_estimate, 0.9),
)


# Inputs


def synthetic_pairs(widths: Sequence[int], count: int, seed: int) -> list[Tensor]:
    """Raw activation pairs as uneven as a language model's, one `[count, d_s]` per source.

    A pair is a sum of about 32 of 4,096 concepts, of exponential strengths and frequencies that
    fall as rank ** -0.7, each with a random direction in every source (or, a tenth of them, in one
    only); a tenth of the variance is white noise. Three dimensions of a source have a large mean
    and 12 times the spread of the others, and the size of a pair varies log-normally by 15%. `seed`
    draws the pairs; the directions depend on the widths alone.
    """
    concepts = 4_096
    fixed = torch.Generator().manual_seed(0)
    drawn = torch.Generator().manual_seed(seed + 1)
    frequency = torch.arange(1, concepts + 1) ** -0.7
    frequency = (32 * frequency / frequency.sum()).clamp_max(0.5)
    owner = torch.randint(20 * len(widths) // 2, (concepts,), generator=fixed)
    directions, offsets, heavy = [], [], []
    for s, width in enumerate(widths):
        mine = torch.randn(concepts, width, generator=fixed) / width**0.5
        others = (owner < len(widths)) & (owner != s)
        directions.append(mine * ~others[:, None])
        offsets.append(0.1 * torch.randn(width, generator=fixed))
        heavy.append(torch.randperm(width, generator=fixed)[:3])
        offsets[s][heavy[s]] *= 200
    pairs: list[list[Tensor]] = [[] for _ in widths]
    for start in range(0, count, 2_048):
        n = min(2_048, count - start)
        active = torch.rand(n, concepts, generator=drawn) < frequency
        strengths = torch.empty(n, concepts).exponential_(generator=drawn) * active
        size = torch.exp(0.15 * torch.randn(n, 1, generator=drawn))
        for s, width in enumerate(widths):
            x = strengths @ directions[s]
            spread = x.std()
            x += spread * 0.33 * torch.randn(n, width, generator=drawn)
            x[:, heavy[s]] += 12 * spread * torch.randn(n, 3, generator=drawn)
            pairs[s].append(x * size + offsets[s])
    return [torch.cat(parts) for parts in pairs]


def make_crosscoder(
    setting: Setting,
    sample: Sequence[Tensor],
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Crosscoder:
    """A new crosscoder of a setting's sizes, with the normalisation of a raw `sample`."""
    torch.manual_seed(seed)
    num_latents, k = setting.num_latents, setting.k
    if setting.arch == "dfc":
        fractions = [0.05] * len(setting.widths)
        cfg = DFCConfig(num_latents=num_latents, k=k, exclusive_fractions=fractions)
        crosscoder = DedicatedFeatureCrosscoder(setting.widths, cfg, device, dtype)
    else:
        cfg = CrosscoderConfig(num_latents=num_latents, k=k)
        crosscoder = Crosscoder(setting.widths, cfg, device, dtype)
    crosscoder.set_normalization(*estimate_normalization(sample))
    return crosscoder


# The ways to take a step


class Stages:
    """Time of a step by stage; a stage inside another is counted as the inner one."""

    def __init__(self, clock: Clock):
        self.clock = clock
        self.spans: list[tuple[str, Any, Any]] = []
        self.open: list[str] = []
        self.since: Any = None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if "AuxK" in self.open:  # reported as a whole
            yield
            return
        self._charge()
        self.open.append(name)
        try:
            yield
        finally:
            self._charge()
            self.open.pop()

    def _charge(self) -> None:
        now = self.clock.mark()
        if self.open:
            self.spans.append((self.open[-1], self.since, now))
        self.since = now

    def milliseconds(self) -> dict[str, float]:
        total: dict[str, float] = {}
        for name, start, end in self.spans:
            total[name] = total.get(name, 0.0) + self.clock.milliseconds(start, end)
        return total


class Losses(NamedTuple):
    """Losses of a batch, and which latents fired `[M]`."""

    loss: Tensor
    auxk: Tensor
    fired: Tensor


class TrainingStep:
    """Loss, gradient, clip, Adam and the counter of dead latents: one step of training."""

    clips: ClassVar[bool] = True

    def __init__(
        self,
        crosscoder: Crosscoder,
        parameters: Sequence[nn.Parameter],
        *,
        auxk: bool,
        lr: float = LEARNING_RATE,
        fused: bool | None = None,
    ):
        self.parameters = parameters
        self.optimizer = torch.optim.Adam(parameters, lr=lr, fused=fused)
        self.auxk = auxk
        self.dead_after = DEAD_AFTER
        self.since_fired = torch.zeros(
            crosscoder.num_latents, dtype=torch.long, device=crosscoder.device
        )
        self.stages: Callable[[str], Any] = lambda name: nullcontext()
        self.mean = crosscoder.mean.clone()
        widths = torch.tensor(crosscoder.d_sources, device=crosscoder.device)
        self.scales = crosscoder.factors.repeat_interleave(widths)

    def normalize(self, batch: Sequence[Tensor]) -> Tensor:
        return (torch.cat(list(batch), 1) - self.mean) * self.scales

    def losses(self, x: Tensor, dead: Tensor | None) -> Losses:
        """Losses of normalised `x` [N, d_in]; `dead` [M] are the latents to revive."""
        raise NotImplementedError

    def step(self, batch: Sequence[Tensor]) -> Tensor:
        """Train on raw pairs, one `[N, d_s]` per source; returns the loss."""
        stage = self.stages
        with stage("count dead"):
            dead = self.since_fired > self.dead_after if self.auxk else None
        with stage("normalise"):
            x = self.normalize(batch)
        with stage("loss"):
            losses = self.losses(x, dead)
            total = losses.loss + AUXK_ALPHA * losses.auxk
        with stage("backward"):
            total.backward()
        with stage("clip"):
            if self.clips:
                torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        with stage("optimiser"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        with stage("count dead"):
            self.since_fired += len(x)
            self.since_fired[losses.fired] = 0
        return losses.loss.detach()


INNER_STAGES: dict[tuple[type, str], str] = {
    (Crosscoder, "_preactivations"): "encoder",
    (Crosscoder, "_select"): "select",
    (BoundedPreactivations, "at"): "re-score",
    (ExactPreactivations, "at"): "re-score",
    (Crosscoder, "_attached"): "attach",
    (Crosscoder, "_decode_blocks"): "decode",
    (BoundedPreactivations, "strongest"): "AuxK",
    (ExactPreactivations, "strongest"): "AuxK",
    (Crosscoder, "_auxk_loss"): "AuxK",
}
"""Methods of the crosscoder that are stages of their own, and the stages' names."""

STAGES = {
    "normalise": "#c4cad0",
    "encoder": "#2f6db3",
    "select": "#3f9b6c",
    "re-score": "#8fc6a8",
    "attach": "#d8dee4",
    "AuxK": "#a3559e",
    "decode": "#8c6d46",
    "loss": "#aab2bb",
    "backward": "#d9822b",
    "clip": "#5b6770",
    "optimiser": "#30363d",
    "count dead": "#e7eaed",
}
"""All stages of our step in their order, and the picture's colours for them."""


class Ours(TrainingStep):
    """`Crosscoder` as its trainer uses it; trains the crosscoder that it is given."""

    screen_dtype: ClassVar[torch.dtype | None] = None

    def __init__(self, crosscoder: Crosscoder, *, auxk: bool, lr: float = LEARNING_RATE):
        parameters = list(crosscoder.parameters())
        super().__init__(crosscoder, parameters, auxk=auxk, lr=lr, fused=True)
        crosscoder.screen_dtype = self.screen_dtype  # type: ignore[assignment]
        self.crosscoder = crosscoder.train()
        self.entries = torch.zeros(0, dtype=torch.long)
        """Active latents of each pair of the last batch, `[N]`."""

    def normalize(self, batch: Sequence[Tensor]) -> Tensor:
        return self.crosscoder.normalize(batch)

    def losses(self, x: Tensor, dead: Tensor | None) -> Losses:
        out = self.crosscoder(x, normalized=True, padded=False, dead_mask=dead)
        fired = torch.zeros_like(self.since_fired, dtype=torch.bool)
        fired[out.code.indices] = True
        self.entries = out.code.counts
        return Losses(out.loss, out.auxk_loss, fired)

    @contextmanager
    def watched(self, stages: Stages) -> Iterator[None]:
        """Report stages, those inside the crosscoder's own forward pass too."""

        def timed(method: Callable[..., Any], stage: str) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                with stages(stage):
                    return method(*args, **kwargs)

            return run

        methods = [(owner, name, getattr(owner, name)) for owner, name in INNER_STAGES]
        unwatched, self.stages = self.stages, stages
        try:
            for owner, name, method in methods:
                setattr(owner, name, timed(method, INNER_STAGES[owner, name]))
            yield
        finally:
            self.stages = unwatched
            for owner, name, method in methods:
                setattr(owner, name, method)


class OursBf16(Ours):
    screen_dtype = torch.bfloat16


class Dense(TrainingStep):
    """The crosscoder as public code has it; see the head of this file."""

    def __init__(self, crosscoder: Crosscoder, *, auxk: bool, lr: float = LEARNING_RATE):
        sources = range(len(crosscoder.d_sources))
        with torch.no_grad():
            self.W_enc = nn.Parameter(
                torch.cat([crosscoder.encoder_weight(s) for s in sources], 1).clone()
            )
            self.W_dec = nn.Parameter(crosscoder.W_dec.clone())
            self.b_enc = nn.Parameter(crosscoder.encoder.bias.clone())
            self.b_dec = nn.Parameter(crosscoder.b_dec.clone())
        parameters = [self.W_enc, self.b_enc, self.W_dec, self.b_dec]
        super().__init__(crosscoder, parameters, auxk=auxk, lr=lr)
        self.d_sources = crosscoder.d_sources
        self.k_aux = crosscoder.cfg.k_aux or round(sum(self.d_sources) / len(self.d_sources)) // 2
        partition = crosscoder.partition
        self.groups = [
            (partition.group_slice(group), group.share * crosscoder.cfg.k)
            for group in partition.groups
        ]
        self._keep_absent_weights_at_zero(crosscoder)

    def _keep_absent_weights_at_zero(self, crosscoder: Crosscoder) -> None:
        blocks = [b for b in crosscoder.partition.blocks if len(b.sources) < len(self.d_sources)]
        if not blocks:
            return
        allowed = torch.ones_like(self.W_enc, dtype=torch.bool)
        for block in blocks:
            for s, columns in enumerate(crosscoder.columns):
                allowed[block.start : block.stop, columns] = s in block.sources
        for weight in (self.W_enc, self.W_dec):
            weight.register_hook(lambda grad: grad * allowed)

    def losses(self, x: Tensor, dead: Tensor | None) -> Losses:
        acts = F.relu(F.linear(x, self.W_enc, self.b_enc))
        codes = torch.zeros_like(acts).flatten()
        chosen = self.choose(acts.detach())
        codes = codes.scatter_(0, chosen, acts.flatten()[chosen]).view_as(acts)
        error = x - (codes @ self.W_dec + self.b_dec)
        auxk = x.new_zeros(())
        if dead is not None and dead.any():
            k_aux = min(self.k_aux, int(dead.sum()))
            values, indices = torch.where(dead, acts, -torch.inf).topk(k_aux, sorted=False)
            aux_codes = torch.zeros_like(acts).scatter_(1, indices, values)
            auxk = auxk_loss(aux_codes @ self.W_dec, error)
        return Losses(fvu(x, error), auxk, codes.detach().sum(0) > 0)

    @torch.no_grad()
    def choose(self, acts: Tensor) -> Tensor:
        """Flat positions in `acts` [N, M] of the entries that BatchTopK keeps, group by group."""
        norms = torch.stack([w.norm(dim=1) for w in self.W_dec.split(self.d_sources, 1)]).sum(0)
        scores = acts * norms
        if len(self.groups) == 1:
            budget = round(self.groups[0][1] * len(acts))
            return scores.flatten().topk(budget, sorted=False).indices
        chosen = []
        for columns, k in self.groups:
            part = scores[:, columns]
            flat = part.flatten().topk(round(k * len(acts)), sorted=False).indices
            row, column = flat // part.shape[1], flat % part.shape[1]
            chosen.append(row * acts.shape[1] + column + columns.start)
        return torch.cat(chosen)


def fvu(x: Tensor, error: Tensor) -> Tensor:
    """Squared `error` [N, D] as a share of the variance of `x` [N, D]."""
    return error.pow(2).sum() / (x - x.mean(0)).pow(2).sum()


def auxk_loss(e_hat: Tensor, error: Tensor) -> Tensor:
    """Squared error of `e_hat` [N, D] as a share of the variance of the residual [N, D]."""
    residual = error.detach()
    variance = (residual - residual.mean(0)).pow(2).sum()
    return ((e_hat - residual).pow(2).sum() / variance).nan_to_num(0.0)


class _EncodeByIndexAdd(torch.autograd.Function):
    """Activations `[E]` of the entries; their gradients are added up entry by entry."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        acts: Tensor,
        rows: Tensor,
        indices: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, rows, indices)
        return acts.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        x, weight, bias, rows, indices = ctx.saved_tensors
        contributions = x[rows].mul_(grad[:, None])
        grad_weight = torch.zeros_like(weight).index_add_(0, indices, contributions)
        grad_bias = torch.zeros_like(bias).index_add_(0, indices, grad)
        return None, grad_weight, grad_bias, None, None, None


class IndexAdd(Dense):
    """The dense reference's selection, then what sparsify does on a CPU.

    Sparse codes decoded by `embedding_bag`, and index_add of one gradient row for each entry.
    """

    def losses(self, x: Tensor, dead: Tensor | None) -> Losses:
        with torch.no_grad():
            acts = F.relu(F.linear(x, self.W_enc, self.b_enc))
            chosen = self.choose(acts).sort().values
            rows, indices = chosen // acts.shape[1], chosen % acts.shape[1]
        error = x - (self.reconstruct(x, acts, rows, indices) + self.b_dec)
        auxk = x.new_zeros(())
        if dead is not None and dead.any():
            k_aux = min(self.k_aux, int(dead.sum()))
            aux_indices = torch.where(dead, acts, -torch.inf).topk(k_aux, sorted=False).indices
            aux_rows = torch.arange(len(x), device=x.device).repeat_interleave(k_aux)
            auxk = auxk_loss(self.reconstruct(x, acts, aux_rows, aux_indices.flatten()), error)
        fired = torch.zeros_like(self.since_fired, dtype=torch.bool)
        fired[indices[acts[rows, indices] > 0]] = True
        return Losses(fvu(x, error), auxk, fired)

    def reconstruct(self, x: Tensor, acts: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
        kept = acts[rows, indices]
        # relu has no gradient at an entry that it set to 0.
        positive = kept > 0
        rows, indices, kept = rows[positive], indices[positive], kept[positive]
        encoded = _EncodeByIndexAdd.apply(x, self.W_enc, self.b_enc, kept, rows, indices)
        counts = torch.bincount(rows, minlength=len(x))
        return F.embedding_bag(
            indices,
            self.W_dec,
            counts.cumsum(0) - counts,
            mode="sum",
            per_sample_weights=encoded,  # type: ignore[arg-type]
        )


class Sparsify(TrainingStep):
    """sparsify's own sparse coder, with its forward and backward pass and its Adam."""

    clips = False

    def __init__(self, crosscoder: Crosscoder, *, auxk: bool, lr: float = LEARNING_RATE):
        from sparsify import SparseCoder, SparseCoderConfig

        cfg = SparseCoderConfig(
            num_latents=crosscoder.num_latents, k=crosscoder.cfg.k, normalize_decoder=False
        )
        self.coder = SparseCoder(crosscoder.d_in, cfg, crosscoder.device, crosscoder.dtype)
        sources = range(len(crosscoder.d_sources))
        with torch.no_grad():
            encoder = torch.cat([crosscoder.encoder_weight(s) for s in sources], 1)
            self.coder.encoder.weight.copy_(encoder)
            self.coder.encoder.bias.copy_(crosscoder.encoder.bias)
            assert self.coder.W_dec is not None
            self.coder.W_dec.copy_(crosscoder.W_dec)
            self.coder.b_dec.copy_(crosscoder.b_dec)
        super().__init__(crosscoder, list(self.coder.parameters()), auxk=auxk, lr=lr)

    def losses(self, x: Tensor, dead: Tensor | None) -> Losses:
        out = self.coder(x, dead_mask=dead)
        fired = torch.zeros_like(self.since_fired, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        return Losses(out.fvu, out.auxk_loss, fired)


class DenseAutocast(Dense):
    """The dense reference under bfloat16 autocast, as public code trains it on a GPU."""

    def losses(self, x: Tensor, dead: Tensor | None) -> Losses:
        with torch.autocast("cuda", torch.bfloat16):
            return super().losses(x, dead)


VARIANTS: dict[str, type[Any]] = {
    "dense": Dense,
    "index_add": IndexAdd,
    "ours fp32": Ours,
    "ours bf16": OursBf16,
    "sparsify": Sparsify,
}
OURS = ("ours fp32", "ours bf16")


# Time


class Clock:
    """The processor's time."""

    def mark(self) -> Any:
        return process_time()

    def milliseconds(self, start: Any, end: Any) -> float:
        return 1e3 * (end - start)


class CudaClock(Clock):
    """The time between events on the GPU."""

    def mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, start: Any, end: Any) -> float:
        end.synchronize()
        return start.elapsed_time(end)


def make_clock(device: str) -> Clock:
    return CudaClock() if device == "cuda" else Clock()


def make_batches(setting: Setting, count: int, seed: int, device: str) -> list[list[Tensor]]:
    pairs = synthetic_pairs(setting.widths, setting.batch * count, seed)
    chunks = [x.to(device).split(setting.batch) for x in pairs]
    return [list(batch) for batch in zip(*chunks, strict=True)]


class Trained:
    """Crosscoders that have been trained for some steps, made once for each shape."""

    def __init__(self, device: str, steps: int):
        self.device, self.steps = device, steps
        self.weights: dict[tuple[Any, ...], dict[str, Tensor]] = {}
        self.samples: dict[tuple[int, ...], list[Tensor]] = {}

    def crosscoder(self, setting: Setting) -> Crosscoder:
        """A crosscoder of a setting's shape; with AuxK, half of its latents are too weak to win."""
        if setting.widths not in self.samples:
            sample = synthetic_pairs(setting.widths, 4_096, seed=1)
            self.samples[setting.widths] = [x.to(self.device) for x in sample]
        crosscoder = make_crosscoder(setting, self.samples[setting.widths], self.device)
        shape = (setting.widths, setting.num_latents, setting.arch)
        if shape not in self.weights:
            step = Ours(crosscoder, auxk=False, lr=WARMUP_LEARNING_RATE)
            for batch in make_batches(replace(setting, batch=512), self.steps, 2, self.device):
                step.step(batch)
            self.weights[shape] = {
                name: p.detach().cpu().clone() for name, p in crosscoder.named_parameters()
            }
        with torch.no_grad():
            for name, parameter in crosscoder.named_parameters():
                parameter.copy_(self.weights[shape][name])
            if setting.auxk:
                dead = half_of(setting.num_latents).to(self.device)
                for block, weight in zip(
                    crosscoder.partition.blocks, crosscoder.encoder.weights, strict=True
                ):
                    weight[dead[block.start : block.stop]] *= 0.05
                crosscoder.encoder.bias[dead] *= 0.05
        return crosscoder


def half_of(num_latents: int) -> Tensor:
    """A fixed random half of the latents, as a mask `[M]`."""
    order = torch.randperm(num_latents, generator=torch.Generator().manual_seed(3))
    return order < num_latents // 2


def make_step(name: str, crosscoder: Crosscoder, setting: Setting) -> TrainingStep:
    """A variant that starts from `crosscoder`, which it may train."""
    step = {**VARIANTS, "dense autocast": DenseAutocast}[name](crosscoder, auxk=setting.auxk)
    if setting.auxk:
        step.since_fired[half_of(setting.num_latents).to(crosscoder.device)] = 2 * DEAD_AFTER
    return step


class Steps(NamedTuple):
    """Milliseconds of a variant's steps, and the page faults of each."""

    ms: list[float]
    page_faults: list[int]


def time_steps(
    steps: Mapping[str, TrainingStep], batches: Sequence[Sequence[Tensor]], clock: Clock
) -> dict[str, Steps]:
    """Take every variant's steps on the same batches, the first turn left out."""
    names = list(steps)
    found = {name: Steps([], []) for name in names}
    for turn, begin in enumerate(range(0, len(batches), TURN)):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            # Some steps in a row, so that caches hold what they would hold in training.
            for batch in batches[begin : begin + TURN]:
                faults = page_faults()
                start = clock.mark()
                steps[name].step(batch)
                ms = clock.milliseconds(start, clock.mark())
                if turn:
                    found[name].ms.append(ms)
                    found[name].page_faults.append(page_faults() - faults)
    return found


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def time_stages(step: Ours, batches: Sequence[Sequence[Tensor]], clock: Clock) -> dict[str, float]:
    """Median milliseconds of every stage of our step, in the order of `STAGES`."""
    found = []
    for batch in batches:
        stages = Stages(clock)
        with step.watched(stages):
            step.step(batch)
        found.append(stages.milliseconds())
    names = [name for name in STAGES if any(name in one for one in found)]
    return {name: median(one.get(name, 0.0) for one in found) for name in names}


# What the machine can do, and what a step asks of it


def ceilings(setting: Setting, device: str) -> dict[str, float]:
    """Measured FLOP/s of the encoder's matrix product and bytes/s of `a += 3 b`."""
    clock = make_clock(device)

    def seconds(run: Callable[[], Any]) -> float:
        found = []
        for _ in range(6):
            start = clock.mark()
            run()
            found.append(clock.milliseconds(start, clock.mark()) / 1e3)
        return median(found[1:])

    d_in, results = sum(setting.widths), {}
    flops = 2 * setting.batch * setting.num_latents * d_in
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        x = torch.randn(setting.batch, d_in, device=device, dtype=dtype)
        weight = torch.randn(setting.num_latents, d_in, device=device, dtype=dtype)
        out = torch.empty(setting.batch, setting.num_latents, device=device, dtype=dtype)
        results[f"gemm_{name}_flops"] = flops / seconds(
            lambda x=x, weight=weight, out=out: torch.mm(x, weight.T, out=out)
        )
    a, b = (torch.ones(64 * 1024**2, device=device) for _ in range(2))
    results["memory_bytes"] = 3 * a.nbytes / seconds(lambda: a.add_(b, alpha=3))
    return results


class Work(NamedTuple):
    """What a stage cannot do without: floating-point operations, and bytes each moved once."""

    flops: int
    bytes: int
    bf16: bool = False
    """Whether the operations may be those of the bfloat16 product."""


def count_work(
    crosscoder: Crosscoder, setting: Setting, screen_dtype: torch.dtype | None
) -> dict[str, Work]:
    """Work of each stage of our step, by its name in the table of stages.

    A row of a matrix that is gathered several times counts as moved once.
    """
    n, size = setting.batch, 4
    weights = sum(w.numel() for w in crosscoder.encoder.weights)
    width = weights // crosscoder.num_latents
    entries = sum(crosscoder.budgets(n))
    screen = n * crosscoder.num_latents * (screen_dtype or torch.float32).itemsize
    inputs = n * crosscoder.d_in * size
    rows = min(entries, crosscoder.num_latents) * width * size
    work = {
        "normalise": Work(2 * n * crosscoder.d_in, 2 * inputs),
        "encoder": Work(2 * n * weights, weights * size + inputs + screen, bool(screen_dtype)),
        "select": Work(2 * weights, weights * size + screen),
        "decode": Work(2 * entries * width, rows + inputs),
        "backward": Work(6 * entries * width, rows + 2 * inputs + 2 * weights * size),
        "clip": Work(4 * weights, 6 * weights * size),
        "optimiser": Work(24 * weights, 14 * weights * size),
    }
    if screen_dtype:
        work["re-score"] = Work(2 * entries * width, rows + inputs)
    if setting.auxk:
        dead = crosscoder.num_latents // 2
        aux = n * min(round(crosscoder.d_in / len(setting.widths)) // 2, dead) * width
        buffer = n * dead * (screen_dtype or torch.float32).itemsize
        work["AuxK"] = Work(4 * aux, buffer + dead * width * size + inputs)
        backward = work["backward"]
        work["backward"] = Work(backward.flops + 6 * aux, backward.bytes + dead * width * size)
    return work


def dense_flops(setting: Setting) -> int:
    """Floating-point operations of the dense step's matrix products."""
    product = 2 * setting.batch * setting.num_latents * sum(setting.widths)
    # Encoding, decoding, gradients of the encoder, of the decoder and of the codes.
    return product * (8 if setting.auxk else 5)


def expected_bytes(
    setting: Setting, screen_dtype: torch.dtype | None = None, matrix_elements: int | None = None
) -> dict[str, int]:
    """Memory that our step needs in float32 on a CPU, by part, and its `peak`; see memory.md.

    `matrix_elements` are the encoder's weights, M times the joint width unless latents lack some.
    """
    n, m, d_in, size = setting.batch, setting.num_latents, sum(setting.widths), 4
    matrix = m * d_in if matrix_elements is None else matrix_elements
    parameters = size * (2 * matrix + m + d_in)
    entries, dead = n * setting.k, 0
    if setting.auxk:
        dead = m // 2
        entries += n * min(round(d_in / len(setting.widths)) // 2, dead)
    parts = {
        "parameters": parameters,
        "gradients": parameters,
        "adam": 2 * parameters,
        "inputs": 2 * n * d_in * size,
        "screening": n * m * (screen_dtype or torch.float32).itemsize,
        "screening_weights": matrix * screen_dtype.itemsize if screen_dtype else 0,
        "mask": n * m,
        "dead": n * dead * ((screen_dtype or torch.float32).itemsize + 3),
        "entries": 64 * entries,
        "errors": (4 if setting.auxk else 2) * n * d_in * size,
    }
    always = parts["parameters"] + parts["adam"] + parts["inputs"] + parts["entries"]
    beside = max(parts["screening_weights"], parts["mask"], parts["dead"])
    selecting = parts["screening"] + beside
    updating = parts["gradients"] + parts["errors"]
    parts["heap"] = min(HEAP_BYTES, selecting + parts["entries"] + parts["errors"])
    return {**parts, "peak": always + max(selecting, updating) + parts["heap"]}


# Memory


def resident_bytes(field: str) -> int:
    """`VmRSS` or `VmHWM`, this process's memory now or at its peak; elsewhere its peak for both."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    # ru_maxrss would begin at the peak of the process that started this one.
    found = re.search(rf"^{field}:\s*(\d+) kB$", status, re.M)
    assert found is not None
    return 1024 * int(found[1])


def run_for_memory(name: str, setting: Setting, device: str) -> None:
    """Take a few steps from new weights on one batch."""
    batch = make_batches(setting, 1, 0, device)[0]
    crosscoder = make_crosscoder(setting, batch, device)
    step = make_step(name, crosscoder, setting)
    del crosscoder
    for _ in range(MEMORY_STEPS):
        step.step(batch)


def _report_peak(name: str, setting: Setting, connection: Any) -> None:
    torch.set_num_threads(1)
    if setting.keep:
        keep_freed_memory()
    # What torch and its libraries load at the first step is not counted.
    run_for_memory(name, replace(setting, num_latents=256, batch=16, k=2), "cpu")
    gc.collect()
    before = resident_bytes("VmRSS")
    run_for_memory(name, setting, "cpu")
    connection.send(resident_bytes("VmHWM") - before)


def peak_bytes(name: str, setting: Setting, device: str, num_runs: int) -> int:
    """Most memory that a variant's steps take, weights and optimiser's state among it.

    On a CPU the median of several processes, as what the allocator can use again varies.
    """
    if device == "cuda":
        gc.collect()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run_for_memory(name, setting, device)
        return torch.cuda.max_memory_allocated() - before
    return round(median(_peak_of_process(name, setting) for _ in range(num_runs)))


def _peak_of_process(name: str, setting: Setting) -> int:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report_peak, args=(name, setting, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"The process that measured the memory of '{name}' died.") from None
    finally:
        process.join()


# The benchmark


def summarise(times: Sequence[float]) -> dict[str, Any]:
    low, _, high = quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
    return {"median_ms": median(times), "quartiles_ms": [low, high], "ms": list(times)}


def benchmark(
    setting: Setting,
    trained: Trained,
    device: str,
    *,
    num_steps: int,
    stage_steps: int,
    memory: Sequence[str],
    memory_runs: int,
) -> dict[str, Any]:
    """Time and stages of all variants at one setting, and the memory of those in `memory`."""
    if setting.keep:
        keep_freed_memory()
    result: dict[str, Any] = {"setting": asdict(setting), "variants": {}}
    peaks: dict[str, int] = {}
    if memory:
        peaks = {name: peak_bytes(name, setting, device, memory_runs) for name in memory}
    clock = make_clock(device)
    steps = {name: make_step(name, trained.crosscoder(setting), setting) for name in VARIANTS}
    ours = {name: step for name, step in steps.items() if isinstance(step, Ours)}
    if device == "cuda":
        name = "dense autocast"
        steps[name] = make_step(name, trained.crosscoder(setting), setting)
    batches = make_batches(setting, TURN + num_steps + stage_steps, 4, device)
    times = time_steps(steps, batches[: TURN + num_steps], clock)
    for name, found in times.items():
        result["variants"][name] = summarise(found.ms)
        if device == "cpu":
            result["variants"][name]["page_faults"] = median(found.page_faults)
        if name in peaks:
            result["variants"][name]["peak_bytes"] = peaks[name]
    for one in result["variants"].values():
        for against in ("dense", "sparsify"):
            ratio = result["variants"][against]["median_ms"] / one["median_ms"]
            one[f"faster_than_{against}"] = ratio
    if memory and not setting.keep:
        result["expected_bytes"] = {
            name: expected_bytes(
                setting,
                step.screen_dtype,
                sum(w.numel() for w in step.crosscoder.encoder.weights),
            )
            for name, step in ours.items()
        }
    entries = ours["ours fp32"].entries.float()
    result["active_latents_per_pair"] = {
        "mean": entries.mean().item(),
        **{f"percentile_{p}": entries.quantile(p / 100).item() for p in (1, 50, 99)},
        "max": entries.max().item(),
    }
    if stage_steps:
        result["ceilings"] = ceilings(setting, device)
        result["stages"] = {}
        limits = result["ceilings"]
        for name, step in ours.items():
            found = time_stages(step, batches[-stage_steps:], clock)
            work = count_work(step.crosscoder, setting, step.screen_dtype)
            result["stages"][name] = {
                stage: {"median_ms": ms, **(shares([work[stage]], ms, limits) if ms else {})}
                if stage in work
                else {"median_ms": ms}
                for stage, ms in found.items()
            }
            one = result["variants"][name]
            one |= shares(list(work.values()), one["median_ms"], limits)
        # Bytes are not counted for the dense step, whose products take most of its time.
        one = result["variants"]["dense"]
        one |= shares([Work(dense_flops(setting), 0)], one["median_ms"], limits)
    return result


def shares(work: Sequence[Work], ms: float, limits: Mapping[str, float]) -> dict[str, float]:
    """What is counted, the shares of the machine's ceilings reached, and the least milliseconds."""
    gemm = {True: limits["gemm_bf16_flops"], False: limits["gemm_fp32_flops"]}
    flop_ms = [1e3 * one.flops / gemm[one.bf16] for one in work]
    byte_ms = [1e3 * one.bytes / limits["memory_bytes"] for one in work]
    return {
        "gflop": sum(one.flops for one in work) / 1e9,
        "gbyte": sum(one.bytes for one in work) / 1e9,
        "gemm_share": sum(flop_ms) / ms,
        "bandwidth_share": sum(byte_ms) / ms,
        "floor_ms": sum(map(max, flop_ms, byte_ms)),
    }


def benchmark_paper(device: str, num_steps: int) -> dict[str, Any]:
    """The paper's size on a GPU: one variant at a time, since two may not fit."""
    clock = make_clock(device)
    result: dict[str, Any] = {"setting": asdict(PAPER), "variants": {}}
    batches = make_batches(PAPER, TURN + num_steps, 4, device)
    for name in (*OURS, "dense", "dense autocast", "sparsify's encoder alone"):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        try:
            crosscoder = make_crosscoder(PAPER, batches[0], device)
            step = fused_encoder_step(crosscoder) if "alone" in name else None
            if step is None:
                step = make_step(name, crosscoder, PAPER).step
            del crosscoder
            found = []
            for batch in batches:
                start = clock.mark()
                step(batch)
                found.append(clock.milliseconds(start, clock.mark()))
        except torch.OutOfMemoryError:
            print(f"{name} does not fit into this GPU at the paper's size.", file=sys.stderr)
            continue
        finally:
            step = None
        result["variants"][name] = {
            **summarise(found[TURN:]),
            "peak_bytes": torch.cuda.max_memory_allocated() - before,
        }
    return result


def fused_encoder_step(crosscoder: Crosscoder) -> Callable[[Sequence[Tensor]], None]:
    """sparsify's encoder, forward and backward, without decoder and optimiser."""
    from sparsify.fused_encoder import fused_encoder

    weight, bias = crosscoder.encoder.weights[0], crosscoder.encoder.bias
    k, normalize = crosscoder.cfg.k, crosscoder.normalize

    def step(batch: Sequence[Tensor]) -> None:
        x = normalize(batch)
        with torch.autocast("cuda", torch.bfloat16):
            out = fused_encoder(x, weight, bias, k, "topk")
        out.top_acts.sum().backward()
        weight.grad = bias.grad = None

    return step


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for, as one report."""
    chosen: dict[str, tuple[Setting, ...]] = dict(QUICK_SIZES if args.quick else SIZES)
    if args.device == "cuda":
        chosen.pop("kept", None)
    if args.sizes:
        known = {name: chosen[name] for name in args.sizes if name in chosen}
        own = tuple(Setting.parse(name) for name in args.sizes if name not in SIZES)
        chosen = known | ({"own": own} if own else {})
    num_steps = QUICK_STEPS if args.quick else STEPS
    stage_steps = QUICK_STAGE_STEPS if args.quick else STAGE_STEPS
    trained = Trained(args.device, WARMUP_STEPS // 4 if args.quick else WARMUP_STEPS)
    report: dict[str, Any] = {
        "quick": args.quick,
        "num_steps": num_steps,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("sparsify-crosscoder", "torch", "eai-sparsify")},
        },
        "machine": {"processor": processor(), "system": platform.system(), "device": args.device},
        "tables": {name: [str(one) for one in sizes] for name, sizes in chosen.items()},
        "settings": {},
        "claims": [],
    }
    if args.device == "cuda":
        report["machine"]["gpu"] = torch.cuda.get_device_name()
    paper = chosen.pop("paper", ())
    detailed = {one for name, sizes in chosen.items() if name not in SCALING for one in sizes}
    measured = {
        one for name, sizes in chosen.items() if name not in (*SCALING, "dfc") for one in sizes
    }
    memory = list(VARIANTS)
    if args.quick:  # each takes a process of its own
        measured &= set(QUICK_SIZES["auxk_off"])
        memory = ["dense", *OURS]
    every = dict.fromkeys(one for sizes in chosen.values() for one in sizes)
    # A process that keeps its memory cannot be made to give it back again.
    for setting in sorted(every, key=lambda setting: setting.keep):
        print(f"{setting} ...", file=sys.stderr, flush=True)
        report["settings"][str(setting)] = benchmark(
            setting,
            trained,
            args.device,
            num_steps=num_steps,
            stage_steps=stage_steps if setting in detailed else 0,
            memory=memory if setting in measured else (),
            memory_runs=QUICK_MEMORY_RUNS if args.quick else MEMORY_RUNS,
        )
    if paper and args.device == "cuda":
        print(f"{PAPER} ...", file=sys.stderr, flush=True)
        report["settings"][str(PAPER)] = benchmark_paper(args.device, num_steps)
    elif paper:
        del report["tables"]["paper"]
        print("The paper's size needs --device cuda; it is left out.", file=sys.stderr)
    if not args.quick and args.device == "cpu":
        report["claims"] = judge(report)
    return report


def judge(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was found for every claim whose settings were measured."""
    rows = []
    for claim in CLAIMS:
        if all(str(setting) in report["settings"] for setting in claim.settings):
            found = claim.found(report)
            row = {"claim": claim.text, "at_least": claim.at_least, "found": found}
            rows.append({**row, "holds": found >= claim.at_least})
    return rows


def processor() -> str:
    """The processor's name."""
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


# Tables and picture


def show(report: Mapping[str, Any]) -> str:
    """The report as tables."""
    versions, machine = report["versions"], report["machine"]
    lines = [
        f"{machine.get('gpu', machine['processor'])}, torch {versions['torch']}, "
        f"medians of {report['num_steps']} steps; ratios are times faster than."
    ]
    for name, settings in report["tables"].items():
        if name in SCALING:
            lines += ["", *_scaling_table(name, [report["settings"][one] for one in settings])]
            continue
        for one in settings:
            result = report["settings"][one]
            lines += ["", one, "", *_variants_table(result)]
            if "stages" in result:
                lines += ["", *_stages_table(result)]
            if "expected_bytes" in result:
                lines += ["", *_memory_table(result)]
    if report["claims"]:
        rows = [
            [
                c["claim"],
                f"{c['at_least']:g}",
                f"{c['found']:.2f}",
                "pass" if c["holds"] else "FAIL",
            ]
            for c in report["claims"]
        ]
        lines += ["", *table(["claim", "at least", "found", ""], rows)]
    return "\n".join(lines)


def _variants_table(result: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, one in result["variants"].items():
        low, high = one["quartiles_ms"]
        rows.append(
            [
                name,
                f"{one['median_ms']:,.1f}",
                f"{low:,.0f}-{high:,.0f}",
                _times(one.get("faster_than_dense")),
                _times(one.get("faster_than_sparsify")),
                _megabytes(one.get("peak_bytes")),
                f"{one['page_faults'] / 1e3:,.1f}" if "page_faults" in one else "",
                _percent(one.get("gemm_share")),
                _percent(one.get("bandwidth_share")),
            ]
        )
    head = ["", "ms", "quartiles", "dense", "sparsify", "peak MB", "page faults, thousands"]
    return table([*head, "of GEMM", "of bandwidth"], rows)


def _stages_table(result: Mapping[str, Any]) -> list[str]:
    rows = []
    for variant, stages in result["stages"].items():
        for stage, one in stages.items():
            counted = "gflop" in one
            rows.append(
                [
                    variant,
                    stage,
                    f"{one['median_ms']:,.1f}",
                    f"{one['gflop']:,.1f}" if counted else "",
                    f"{one['gbyte']:,.2f}" if counted else "",
                    f"{one['floor_ms']:,.1f}" if counted else "",
                ]
            )
        total = result["variants"][variant]
        rows.append(
            [
                variant,
                "all",
                f"{sum(one['median_ms'] for one in stages.values()):,.1f}",
                f"{total['gflop']:,.1f}",
                f"{total['gbyte']:,.2f}",
                f"{total['floor_ms']:,.1f}",
            ]
        )
    limits = result["ceilings"]
    return [
        f"Ceilings: {limits['gemm_fp32_flops'] / 1e9:,.0f} GFLOP/s in fp32, "
        f"{limits['gemm_bf16_flops'] / 1e9:,.0f} in bf16, {limits['memory_bytes'] / 1e9:,.1f} GB/s",
        "",
        *table(["", "stage", "ms", "GFLOP", "GB", "floor ms"], rows),
    ]


def _memory_table(result: Mapping[str, Any]) -> list[str]:
    expected = result["expected_bytes"]
    measured = [result["variants"][name]["peak_bytes"] for name in expected]
    rows = [
        [part, *(_megabytes(parts[part]) for parts in expected.values())]
        for part in next(iter(expected.values()))
    ]
    ratios = [parts["peak"] / peak for parts, peak in zip(expected.values(), measured, strict=True)]
    rows.append(["measured", *map(_megabytes, measured)])
    rows.append(["expected of measured", *(f"{100 * ratio:.0f}%" for ratio in ratios)])
    return table(["expected MB", *expected], rows)


def _scaling_table(name: str, results: Sequence[Mapping[str, Any]]) -> list[str]:
    field = {"latents": "num_latents"}.get(name, name)
    rows = []
    for result in results:
        variants = result["variants"]
        row = [f"{result['setting'][field]:,}"]
        row += [f"{variants[one]['median_ms']:,.1f}" for one in VARIANTS]
        for one in OURS:
            row.append(_times(variants[one]["faster_than_dense"]))
            row.append(_times(variants[one]["faster_than_sparsify"]))
        rows.append(row)
    head = [name, *(f"{one} ms" for one in VARIANTS)]
    head += [f"{one} / {against}" for one in ("fp32", "bf16") for against in ("dense", "sparsify")]
    return table(head, rows)


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.0f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}%"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    written = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (head, *rows)
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [written[0], rule, *written[1:]]


COLOURS = {"ours fp32": "#2f6db3", "ours bf16": "#d9822b"}
LABEL_STYLE: dict[str, Any] = {"fontsize": 9, "color": "#57606a"}


def plot(report: Mapping[str, Any], png: Path) -> None:
    """Draw how much faster our step is against M, and where its time goes, into one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(14, 4.8), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.045, right=0.91, bottom=0.13, top=0.88, wspace=0.24)

    results = [report["settings"][one] for one in report["tables"].get("latents", ())]
    latents = [result["setting"]["num_latents"] for result in results]
    for name, colour in COLOURS.items():
        for against, line in (("dense", "-"), ("sparsify", "--")):
            ratios = [r["variants"][name][f"faster_than_{against}"] for r in results]
            label = f"{name} against {against}"
            left.plot(latents, ratios, line, marker="o", color=colour, linewidth=2, label=label)
    left.set_title("Times faster, by latents", loc="left", fontsize=12)
    left.set_ylim(bottom=0)
    if results:
        left.set_xscale("log", base=2)
        left.set_xticks(latents, [f"{m:,}" for m in latents])
        left.legend(frameon=False, fontsize=9)

    bars = [
        (f"{title}\n{name}", report["settings"][setting]["stages"][name])
        for table, title in (("auxk_off", "AuxK off"), ("auxk_on", "AuxK on"), ("narrow", "narrow"))
        for setting in report["tables"].get(table, ())
        for name in OURS
    ]
    for row, (_, found) in enumerate(bars):
        start = 0.0
        for stage, one in found.items():
            right.barh(-row, one["median_ms"], left=start, color=STAGES[stage])
            start += one["median_ms"]
    right.set_title("Milliseconds of a step, by stage", loc="left", fontsize=12)
    right.set_yticks([-row for row in range(len(bars))], [title for title, _ in bars])
    drawn = [stage for stage in STAGES if any(stage in found for _, found in bars)]
    patches = [Patch(color=STAGES[stage], label=stage) for stage in drawn]
    right.legend(
        handles=patches, frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    for axes in (left, right):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(colors=LABEL_STYLE["color"], labelsize=9)
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, under two minutes")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw the figures there, a PNG")
    parser.add_argument(
        "--sizes",
        nargs="+",
        metavar="NAME",
        help=f"only these: {', '.join(SIZES)},\nor of the form 576+640/16384/1024/64[/auxk][/dfc]",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.device == "cuda":
        if not torch.cuda.is_available():
            parser.error("--device cuda: this machine has no GPU that torch can use.")
        torch.set_float32_matmul_precision("high")
    for name in args.sizes or ():
        if name not in SIZES:
            try:
                Setting.parse(name)
            except ValueError as error:
                parser.error(str(error))

    report = run(args)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(show(report))
    if args.plot:
        plot(report, args.plot)
    return 0 if all(claim["holds"] for claim in report["claims"]) else 1


if __name__ == "__main__":
    sys.exit(main())
