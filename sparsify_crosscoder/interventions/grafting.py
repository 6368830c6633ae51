"""Other activations in place of a model's own, at aligned pairs of what it reads.

P pairs, D width of the hookpoint, T tokens that have a next one, V variants, W vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..harvest.batching import FORWARD_COST, FORWARD_COST_CPU, Batch, batches_by_length
from ..harvest.divergence import LastStates
from ..harvest.heads import Head
from ..harvest.hookpoints import first_tensor
from ..harvest.placement import execution_devices, input_device
from ..harvest.source import Source
from .graft_text import AlignedText, NextTokens
from .resuming import blocks_before, giving

_LOGITS_AT_ONCE, _POSITIONS_AT_ONCE = 2**24, 256


class Graft(NamedTuple):
    """What is put in place of a hookpoint's output."""

    values: Tensor
    """`[P, D]`, raw activations."""

    where: Tensor
    """`[P]`, the pairs at which it is put; everywhere else the activation stays as it is."""

    strength: float = 1.0
    """How far it is gone from the activation to the value. 0 changes no bit."""

    def put(self, output: Any, batch: Batch, source: int) -> Any:
        """The output of a hookpoint, a `[B, T, D]` tensor or a tuple that begins so, with it."""
        hidden = first_tensor(output)
        where = self.where[batch.destination]
        if not self.strength or not where.any():
            return output
        place = (batch.window[where], batch.position[source][where])
        place = tuple(index.to(hidden.device) for index in place)
        values = self.values[batch.destination[where]].to(hidden.device)
        if self.strength != 1:
            own = hidden[place].float()
            values = own + self.strength * (values.float() - own)
        grafted = hidden.index_put(place, values.to(hidden.dtype))
        return (grafted, *output[1:]) if isinstance(output, tuple) else grafted


class GraftedReader:
    """A model that reads the same windows again and again, each time with another graft.

    What it computes before the hookpoint is computed once, if going on from there comes to the
    same bits, which is tried.

    Args:
        source: the model, with its head.
        number: the source's.
        text: what it reads.
        batch_size: windows that it reads at once, at most.
    """

    def __init__(self, source: Source, number: int, text: AlignedText, batch_size: int):
        assert source.head is not None
        self.source, self.number = source, number
        columns = [f"{kind}_{number}" for kind in ("input_ids", "pairs")]
        texts: dict[str, Any] = {name: text.windows[name][:] for name in columns}
        self._lengths = np.array([len(ids) for ids in texts[columns[0]]])
        on_cpu = input_device(source.model).type == "cpu"
        cost = FORWARD_COST_CPU if on_cpu else FORWARD_COST
        self._batches = list(batches_by_length(texts, [number], text.counts, batch_size, cost))
        self._skipped = blocks_before(source.model, [source.hookpoint])
        self._entered: list[Any] = []
        self.own = self._read_whole()
        """The last hidden states of the model as it is."""

    def states(self, graft: Graft) -> LastStates:
        """The model's last hidden states with a graft at its hookpoint.

        Of windows without a pair at which something is put they are the model's own.
        """
        return self._read(graft)

    def _read_whole(self) -> LastStates:
        """Read everything once, keeping what enters the first block that is not skipped."""
        if not self._skipped:
            return self._read(None)
        kept: list[Any] = []
        handle = self._skipped[-1].register_forward_hook(
            lambda module, args, output: kept.append(output)
        )
        try:
            own = self._read(None)
        finally:
            handle.remove()
        self._entered = kept
        if not torch.equal(own.states, self._read(None).states):
            self._entered = []
        return own

    @torch.inference_mode()
    def _read(self, graft: Graft | None) -> LastStates:
        source, model = self.source, self.source.model
        place = model.base_model.get_submodule(source.hookpoint)
        device = input_device(model)
        if graft is None:
            last = LastStates.empty(source, self._lengths)
        else:
            last = LastStates(self.own.states.clone(), self.own.first)
        for number, batch in enumerate(self._batches):
            if graft is not None and not graft.where[batch.destination].any():
                continue
            with ExitStack() as stack:
                for kind in {one.type for one in execution_devices(model)}:
                    stack.enter_context(torch.autocast(kind, enabled=False))
                if self._entered:
                    stack.enter_context(giving(self._skipped, self._entered[number]))
                if graft is not None:
                    handle = place.register_forward_hook(
                        lambda module, args, output, batch=batch: graft.put(
                            output, batch, self.number
                        )
                    )
                    stack.callback(handle.remove)
                mask = None if source.causal else batch.attention_mask.to(device)
                ids = batch.input_ids.to(device)
                output = model(input_ids=ids, attention_mask=mask, use_cache=False)
            last.put(batch, output.last_hidden_state)
        return last


class Expected(NamedTuple):
    """What models expect behind each token."""

    losses: Tensor
    """`[1 + V, T]`: cross-entropy of the token that comes, nats; the first row is the reference's.
    """

    kl: Tensor
    """`[V, T]`: KL divergence of each variant from the reference, KL(reference || variant)."""


@torch.inference_mode()
def expected(
    tokens: NextTokens,
    reference: tuple[Head, LastStates],
    variants: Sequence[tuple[Head, LastStates]],
) -> Expected:
    """Compare what variants expect next with what a reference does, of the same vocabulary.

    Logits of some positions exist at a time.
    """
    count, heads = len(tokens.rows), [reference[0], *(head for head, _ in variants)]
    losses, kl = torch.zeros(len(heads), count), torch.zeros(len(variants), count)
    at_once = min(max(_LOGITS_AT_ONCE // reference[0].num_tokens, 1), _POSITIONS_AT_ONCE)
    for some in torch.arange(count).split(at_once):
        known: Tensor | None = None
        for v, (head, last) in enumerate((reference, *variants)):
            states = last.states[tokens.rows[some].to(last.states.device)]
            found = head(states).log_softmax(-1)  # [n, W]
            wanted = tokens.following[some, None].to(found.device)
            losses[v, some] = -found.gather(1, wanted)[:, 0].cpu()
            if known is None:
                known = found
                continue
            apart = known - found.to(known.device)
            kl[v - 1, some] = torch.linalg.vecdot(known.exp(), apart).clamp(min=0).cpu()
    return Expected(losses, kl)


def sums_by_text(values: Tensor, texts: Tensor) -> np.ndarray:
    """Sums of values `[V, T]` over the tokens of each text, `[texts, V]` in float64."""
    found = torch.zeros(int(texts.max()) + 1, len(values), dtype=torch.float64)
    return found.index_add_(0, texts, values.T.double()).numpy()
