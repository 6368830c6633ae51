"""A crosscoder written densely, as plain autograd, to compare with."""

import torch
from torch import Tensor

from sparsify_crosscoder import Crosscoder, ResidualDedicatedFeatureCrosscoder


def added_loss(crosscoder: Crosscoder, x: Tensor, acts: Tensor) -> Tensor:
    """What `difference_weight` adds to the loss of normalised `x` [N, d_in] with `acts` [N, M]."""
    total = x.new_zeros(())
    if not isinstance(crosscoder, ResidualDedicatedFeatureCrosscoder):
        return total
    for s in range(len(crosscoder.d_sources)):
        exclusive = crosscoder.partition.exclusive(s)
        block = slice(exclusive.start, exclusive.stop)
        decoded = acts[:, block] @ crosscoder.decoder(s)[block]
        left = crosscoder.unpredicted(x - crosscoder.b_dec.detach(), s)
        total = total + ((left - decoded) @ crosscoder.whitening(s)).pow(2).sum()
    return crosscoder.cfg.difference_weight * total / (len(x) * crosscoder.d_in)


def dense_losses(
    crosscoder: Crosscoder, x: Tensor, dead: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(mask of selected entries [N, M], loss, auxiliary loss) for normalised `x` [N, d_in]."""
    cfg = crosscoder.cfg
    sources = range(len(crosscoder.d_sources))
    weight = torch.cat([crosscoder.encoder_weight(s) for s in sources], 1)
    bias = crosscoder.encoder.bias
    w_dec = crosscoder.W_dec
    acts = (x @ weight.T + bias).relu()
    norms = sum(w_dec[:, c].norm(dim=1) for c in crosscoder.columns).detach()
    if cfg.rank_by == "mean":
        norms = norms / sum((w_dec[:, c] != 0).any(1).to(x.dtype) for c in crosscoder.columns)
    scores = acts.detach() * (1 if cfg.rank_by == "activation" else norms)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for group in crosscoder.partition.groups:
        columns = crosscoder.partition.group_slice(group)
        part = scores[:, columns]
        budget = min(round(group.share * cfg.k * len(x)), int((part > 0).sum()))
        order = part.flatten().argsort(descending=True, stable=True)[:budget]
        chosen = torch.zeros(part.numel(), dtype=torch.bool)
        chosen[order] = True
        mask[:, columns] = chosen.view_as(part)

    error = x - ((acts * mask) @ w_dec + crosscoder.b_dec)
    variance = (x - x.mean(0)).pow(2).sum()
    if cfg.loss == "squared":
        loss = error.pow(2).sum() / variance
    else:
        norm = sum(error[:, c].norm(dim=1).sum() for c in crosscoder.columns)
        loss = norm / (variance * len(x) * len(sources)).sqrt()
    loss = loss + added_loss(crosscoder, x, acts * mask)
    auxk = x.new_zeros(())
    if dead is not None and dead.any():
        residual = error.detach()
        read = residual @ weight.T if cfg.auxk_form == "residual" else x @ weight.T + bias
        dead_acts = torch.where(dead, read.relu(), 0)
        k_aux = cfg.k_aux or round(sum(crosscoder.d_sources) / len(sources)) // 2
        if k_aux < int(dead.sum()):
            ranked = torch.where(dead, dead_acts, -1).detach()
            kept = torch.zeros_like(ranked).scatter_(1, ranked.topk(k_aux, 1).indices, 1.0)
            dead_acts = dead_acts * kept
        spread = (residual - residual.mean(0)).pow(2).sum()
        auxk = (dead_acts @ w_dec - residual).pow(2).sum() / spread
    return mask, loss, auxk
