"""Pushing a model's residual stream along a direction while it reads and writes (B.4.3).

B rows of a batch, T columns (tokens, padding on the left), D width, F directions at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..crosscoders import Crosscoder
from ..harvest.hookpoints import first_tensor, normalize_hookpoint

Mode = Literal["add", "ablate", "clamp"]
Tokens = Literal["all", "prompt", "generated"] | tuple[int, int]
Push = Callable[[Any], Any]
"""From a module's output to the steered one."""


@dataclass(frozen=True, eq=False)
class Steering:
    """A direction in a model's residual stream, and how strengths act along it.

    With u the unit vector of `vector`, a token's activation x becomes, at strength a != 0,

    - add: `x + a * scale * vector` (B.4.3);
    - ablate: `x - a * ((x - center) . u) u`; 1 removes the direction;
    - clamp: `x` with `(x - center) . u` set to `a * scale * |vector|`, what adding to `center`
      would give.

    At strength 0 x stays as it is, to the bit, in every mode. Raises ValueError for a vector that
    is not one finite, non-zero direction and for unknown modes and tokens.
    """

    vector: Tensor
    """Direction in the raw activations of the hookpoint, `[D]`."""

    hookpoint: str
    """Module whose output is steered, as sources name theirs: `layers.16`."""

    scale: float = 1.0
    """Multiples of `vector` that a strength of 1 stands for."""

    mode: Mode = "add"

    tokens: Tokens = "all"
    """Which tokens are steered: all, those of the prompt, those generated (as they are read in
    turn), or from a first up to a last place, the last excluded; negative places count from the
    end of the prompt. Padding never is."""

    center: Tensor | None = None
    """Where the direction counts as absent, `[D]`, or `[B, T, D]` for each token of what is read at
    once; the origin by default."""

    label: str = ""

    def __post_init__(self):
        vector = self.vector.detach().float()
        object.__setattr__(self, "vector", vector)
        if vector.ndim != 1 or not vector.isfinite().all() or not vector.any():
            raise ValueError(
                f"A steering vector is one finite direction other than 0, got a tensor of shape "
                f"{list(vector.shape)} and norm {vector.norm():g}."
            )
        if self.center is not None and self.center.shape[-1:] != vector.shape:
            raise ValueError(
                f"center has shape {list(self.center.shape)}, vector {list(vector.shape)}."
            )
        if not torch.tensor(float(self.scale)).isfinite():
            raise ValueError(f"scale must be finite, got {self.scale}.")
        if self.mode not in ("add", "ablate", "clamp"):
            raise ValueError(f"Unknown mode {self.mode!r}: use add, ablate or clamp.")
        known = isinstance(self.tokens, str) and self.tokens in ("all", "prompt", "generated")
        span = not isinstance(self.tokens, str) and len(self.tokens) == 2
        if not (known or span):
            raise ValueError(
                f"Unknown tokens {self.tokens!r}: use all, prompt, generated or (first, last)."
            )

    @classmethod
    def of_latent(
        cls, crosscoder: Crosscoder, latent: int, source: int, s_max: float, **options: Any
    ) -> Steering:
        """A latent's decoder in the raw space of one source, in multiples of `s_max`.

        `s_max` is the latent's largest activation over a corpus (`largest_activations`), so that
        a strength of 1 is what the latent writes where it is strongest. `center` is the source's
        mean. Raises ValueError where the latent does not write to that source.
        """
        if not 0 <= latent < crosscoder.num_latents:
            raise ValueError(f"There are latents 0..{crosscoder.num_latents - 1}, not {latent}.")
        if not s_max > 0:
            raise ValueError(
                f"Latent {latent} has a largest activation of {s_max:g}: it never fires on these "
                "pairs, so there is no strength to steer with. Look at more pairs."
            )
        decoder = crosscoder.decoder(source)[latent].detach().float().cpu()
        if not decoder.any():
            name = crosscoder.sources[source].get("name", f"source {source}")
            raise ValueError(
                f"Latent {latent} is exclusive to another model and writes nothing to {name}; to "
                "steer that one with it, map its direction there (`direction` of a Stitching)."
            )
        return cls(
            decoder / float(crosscoder.factors[source]),
            hookpoint=crosscoder.sources[source]["hookpoint"],
            scale=float(s_max),
            **{
                "center": crosscoder.mean[crosscoder.columns[source]].float().cpu(),
                "label": f"latent {latent}",
                **options,
            },
        )

    def apply(self, output: Any, strength: float | Tensor, where: Tensor | None = None) -> Any:
        """The steered form of a module's output, a `[B, T, D]` tensor or a tuple that begins so.

        `strength` is a number or one per row, `[B]`; `where` [B, T] says which tokens are steered,
        all by default. For use inside an nnsight trace: `layer.output = s.apply(layer.output, 3)`.
        """
        x = first_tensor(output)
        if x.shape[-1] != len(self.vector):
            raise ValueError(
                f"The vector has width {len(self.vector)}, but '{self.hookpoint}' of this model "
                f"gives {x.shape[-1]}. It belongs to another model or hookpoint."
            )
        strengths = torch.as_tensor(strength, dtype=torch.float32, device=x.device)
        strengths = strengths.reshape(-1, *[1] * (x.ndim - 1))
        vector = self.vector.to(x.device)
        if self.mode == "add":
            steered = x + (strengths * self.scale * vector).to(x.dtype)
        else:
            norm = vector.norm()
            unit = vector / norm
            centred = x.float() if self.center is None else x.float() - self.center.to(x.device)
            along = (centred @ unit)[..., None]
            if self.mode == "ablate":
                change = -strengths * along
            else:
                change = strengths * self.scale * norm - along
            steered = (x.float() + change * unit).to(x.dtype)
        active = strengths != 0
        if where is not None:
            active = active & where[..., None]
        steered = torch.where(active, steered, x)
        return (steered, *output[1:]) if isinstance(output, tuple) else steered


class SteeredBatch:
    """What happens to the rows of one batch while a model reads and continues them.

    Args:
        steering: directions, at any hookpoints.
        strengths: `[B, F]` (or `[1, F]` for all rows alike), one for every row and direction.
        mask: attention mask of the prompts `[B, T]`, padded on the left. Needed where not all
            tokens are steered. The batch must then be read once from its beginning.
    """

    def __init__(self, steering: Sequence[Steering], strengths: Tensor, mask: Tensor | None = None):
        if strengths.ndim != 2 or strengths.shape[1] != len(steering):
            raise ValueError(
                f"{len(steering)} directions need strengths of shape [rows, {len(steering)}], got "
                f"{list(strengths.shape)}."
            )
        if mask is None and any(s.tokens != "all" for s in steering):
            raise ValueError("Steering only some tokens needs the prompts' attention mask.")
        self.steering = steering
        self.strengths = strengths
        self.mask = mask

    def pushes(self, model: Any) -> dict[str, Push]:
        """What to do with the output of each hookpoint of a model, in the order of its forward."""
        by_place: dict[str, list[int]] = {}
        for i, one in enumerate(self.steering):
            by_place.setdefault(normalize_hookpoint(model, one.hookpoint), []).append(i)
        order = _forward_order(model, by_place) if len(by_place) > 1 else list(by_place)
        return {place: self._push(by_place[place]) for place in order}

    def _push(self, which: Sequence[int]) -> Push:
        columns_read = 0

        def push(output: Any) -> Any:
            nonlocal columns_read
            num_columns = first_tensor(output).shape[1]
            for i in which:
                where = self._where(self.steering[i].tokens, columns_read, num_columns)
                output = self.steering[i].apply(
                    output,
                    self.strengths[:, i],
                    None if where is None else where.to(first_tensor(output).device),
                )
            columns_read += num_columns
            return output

        return push

    def _where(self, tokens: Tokens, first: int, count: int) -> Tensor | None:
        """Which of `count` columns from `first` on are steered, `[B, count]`."""
        if self.mask is None:
            return None
        mask = self.mask.cpu()
        lengths = mask.sum(1, keepdim=True)
        columns = torch.arange(first, first + count)
        places = columns - (mask.shape[1] - lengths)
        if tokens == "all":
            return places >= 0
        if tokens == "prompt":
            return (places >= 0) & (places < lengths)
        if tokens == "generated":
            return places >= lengths
        begin, end = (edge + lengths * (edge < 0) for edge in tokens)  # type: ignore[operator]
        return (places >= begin.clamp_min(0)) & (places < end)


@contextmanager
def steered(
    model: Any,
    steering: Steering | Sequence[Steering],
    strengths: float | Sequence[float] | Tensor = 1.0,
    mask: Tensor | None = None,
) -> Iterator[None]:
    """Steer everything that a `transformers` model does inside the block, by torch's own hooks.

    `strengths` is one for all rows and directions, one per direction `[F]`, or one for every row
    and direction `[B, F]`. `mask` is the prompts' attention mask, for steering only some tokens of
    one generation.
    """
    steering = [steering] if isinstance(steering, Steering) else list(steering)
    values = torch.as_tensor(strengths, dtype=torch.float32)
    values = values.expand(1, len(steering)) if values.ndim < 2 else values
    pushes = SteeredBatch(steering, values, mask).pushes(model)

    def hook(push: Push):
        return lambda module, args, output: push(output)

    handles = [
        model.base_model.get_submodule(place).register_forward_hook(hook(push))
        for place, push in pushes.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def whole_names(model: Any, hookpoints: Sequence[str]) -> list[str]:
    """Hookpoints with the base model's own name before them, as `named_modules` spells them."""
    base = next(name for name, module in model.named_modules() if module is model.base_model)
    return [f"{base}.{hookpoint}" if base else hookpoint for hookpoint in hookpoints]


@torch.inference_mode()
def _forward_order(model: Any, hookpoints: Sequence[str] | dict[str, Any]) -> list[str]:
    """Hookpoints by when their output comes; found by reading one token."""
    order: list[str] = []
    handles = [
        model.base_model.get_submodule(place).register_forward_hook(
            lambda module, args, output, place=place: order.append(place)
        )
        for place in hookpoints
    ]
    try:
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return order
