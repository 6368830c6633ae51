"""One forward of a model, from which activations are taken and which ends where no more are."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .batching import Batch
from .divergence import LastStates
from .hookpoints import first_tensor
from .placement import accelerate_hooks, execution_devices, input_device, module_device
from .source import Source


class Kept(NamedTuple):
    """What is kept of one source, filled by its forwards."""

    activations: Tensor
    """[pairs, d_s]."""

    finite: Tensor
    """[pairs]: whether all of a row is."""

    last: LastStates | None = None
    """The last hidden states of the source's model, where they are wanted."""

    @classmethod
    def empty(cls, source: Source, num_pairs: int) -> "Kept":
        model = source.model
        device = module_device(model.base_model.get_submodule(source.hookpoint))
        device = device or input_device(model)
        activations = torch.empty(num_pairs, source.width, dtype=model.dtype, device=device)
        return cls(activations, torch.ones(num_pairs, dtype=torch.bool, device=device))

    def put(self, destination: Tensor, rows: Tensor) -> None:
        """Keep `rows` [n, d_s], of any dtype and device, as the pairs `destination` [n]."""
        rows = rows.to(self.activations)
        destination = destination.to(rows.device)
        self.activations[destination] = rows
        self.finite[destination] = rows.isfinite().all(dim=1)


@torch.inference_mode()
def run_forward(
    sources: Sequence[Source],
    model: PreTrainedModel,
    members: list[int],
    batch: Batch,
    kept: list[Kept],
    stop_early: bool,
) -> None:
    """One forward of a model, or a copy of it, for the sources `members`: fills rows of `kept`.

    It ends behind the last hookpoint, if `stop_early` and no last hidden states are wanted.
    """
    device, last = input_device(model), kept[members[0]].last

    def keep(hookpoint: str, hidden: Tensor) -> None:
        window = batch.window.to(hidden.device)
        for s in members:
            if sources[s].hookpoint == hookpoint:
                rows = hidden[window, batch.position[s].to(hidden.device)]
                kept[s].put(batch.destination, rows)

    with ExitStack() as stack:
        # A trainer's autocast must not reach the models: their dtype is chosen once, at loading.
        for kind in {one.type for one in execution_devices(model)}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        hookpoints = {sources[s].hookpoint for s in members}
        stack.enter_context(_reading(model, hookpoints, keep, stop_early and last is None))
        mask = None if all(sources[s].causal for s in members) else batch.attention_mask.to(device)
        ids = batch.input_ids.to(device)
        output = model(input_ids=ids, attention_mask=mask, use_cache=False)
        if last is not None:
            last.put(batch, output.last_hidden_state)


class _AllRead(Exception):
    """Ends a forward whose last hookpoint, which it names, has been read."""


@contextmanager
def _reading(
    model: PreTrainedModel,
    hookpoints: Iterable[str],
    keep: Callable[[str, Tensor], None],
    stop_early: bool,
) -> Iterator[None]:
    """Inside, a forward hands every hookpoint's output to `keep` and ends after the last."""
    waiting = set(hookpoints)

    def hook(hookpoint: str, output: Any) -> None:
        keep(hookpoint, first_tensor(output))
        waiting.discard(hookpoint)
        if stop_early and not waiting:
            raise _AllRead(hookpoint)

    handles = [
        model.base_model.get_submodule(hookpoint).register_forward_hook(
            lambda module, args, output, hookpoint=hookpoint: hook(hookpoint, output)
        )
        for hookpoint in tuple(waiting)
    ]
    try:
        yield
    except _AllRead as read:
        _leave(model.base_model, str(read))
    finally:
        for handle in handles:
            handle.remove()


def _leave(model: nn.Module, hookpoint: str) -> None:
    """End what accelerate began in the modules around a hookpoint behind which a forward stopped.

    Weights of their own that were loaded for the forward go back to where they are offloaded.
    """
    parts = hookpoint.split(".")
    for depth in reversed(range(len(parts))):
        module = model.get_submodule(".".join(parts[:depth]))
        for hook in accelerate_hooks(module):
            hook.post_forward(module, ())
