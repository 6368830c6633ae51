"""The ways to take a training step, which the head of training_step.py describes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from step_settings import Setting
from torch import Tensor, nn

from sparsify_crosscoder import Crosscoder
from sparsify_crosscoder.crosscoders import SparseCode, losses
from sparsify_crosscoder.crosscoders.preactivations import (
    BoundedPreactivations,
    ExactPreactivations,
    Product,
)

AUXK_ALPHA = 0.03
DEAD_AFTER = 10_000_000
LEARNING_RATE = 1e-4


class Losses(NamedTuple):
    """Losses of a batch, and which latents fired `[M]`."""

    loss: Tensor
    auxk: Tensor
    fired: Tensor


class TrainingStep:
    """Loss, gradient, clip, Adam and the counter of dead latents: one step of training."""

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

    def clip(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)

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
            self.clip()
        with stage("optimiser"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        with stage("count dead"):
            self.since_fired += len(x)
            self.since_fired[losses.fired] = 0
        return losses.loss.detach()


INNER_STAGES: dict[tuple[Any, str], str] = {
    (Crosscoder, "_preactivations"): "encoder",
    (Crosscoder, "_select"): "select",
    (BoundedPreactivations, "at"): "re-score",
    (Product, "multiply"): "encoder",
    (Crosscoder, "_attached"): "attach",
    (Crosscoder, "_decode_blocks"): "decode",
    (BoundedPreactivations, "strongest"): "AuxK",
    (ExactPreactivations, "strongest"): "AuxK",
    (losses, "auxiliary"): "AuxK",
}
"""What of the crosscoder is a stage of its own, and the stages' names."""

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
        self.code: SparseCode | None = None
        """That of the last batch."""

    def normalize(self, batch: Sequence[Tensor]) -> Tensor:
        return self.crosscoder.normalize(batch)

    def losses(self, x: Tensor, dead: Tensor | None) -> Losses:
        out = self.crosscoder(x, normalized=True, padded=False, dead_mask=dead)
        fired = torch.zeros_like(self.since_fired, dtype=torch.bool)
        fired.index_fill_(0, out.code.indices, True)
        self.code = out.code
        return Losses(out.loss, out.auxk_loss, fired)

    @contextmanager
    def watched(self, stages: Callable[[str], Any]) -> Iterator[None]:
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
    """The crosscoder as public code has it; see the head of training_step.py."""

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

    def clip(self) -> None:
        pass

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


def make_step(name: str, crosscoder: Crosscoder, setting: Setting) -> TrainingStep:
    """A variant that starts from `crosscoder`, which it may train."""
    step = {**VARIANTS, "dense autocast": DenseAutocast}[name](crosscoder, auxk=setting.auxk)
    if setting.auxk:
        step.since_fired[half_of(setting.num_latents).to(crosscoder.device)] = 2 * DEAD_AFTER
    return step


def half_of(num_latents: int) -> Tensor:
    """A fixed random half of the latents, as a mask `[M]`."""
    order = torch.randperm(num_latents, generator=torch.Generator().manual_seed(3))
    return order < num_latents // 2


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
