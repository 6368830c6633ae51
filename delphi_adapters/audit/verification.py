"""Which latents are verified by steering, and how the models are steered (B.5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sparsify_crosscoder.command_options import option

if TYPE_CHECKING:
    from sparsify_crosscoder.interventions.generation import Sampling


@dataclass(frozen=True)
class ChosenCounts:
    """How many latents were chosen to be verified, and from how many."""

    flagged: int
    """Latents that could be verified as they are flagged, and others ..."""

    kept: int
    """... as the filter keeps them."""

    verified: int
    sample: int
    sampled_from: Literal["interpretable", "explained", "described"]
    pool: int
    """Latents that the sample was drawn from."""

    listed: int = 0
    """Others that could be, as a listed difference is named by them."""


@dataclass
class VerificationOptions:
    """Latents that are looked at, and what both models are asked while they are steered."""

    verify: int = 50
    """flagged, listed or kept latents at most ({default})"""

    sample: int = 20
    """random others beside them ({default})"""

    nulls: int = 5
    """shared latents and random directions a model ({default})"""

    prompts: list[str] | None = None
    """prompts (three open questions)"""

    prompts_file: Path | None = None
    """a text file with one prompt a line"""

    chat: Literal["auto", "yes", "no"] = "auto"
    """(auto)"""

    strengths: list[float] = option([float(strength) for strength in range(11)])
    """(0..10)"""

    max_new_tokens: int = 200
    """of an answer ({default})"""

    temperature: float = 0.7
    """of sampling ({default})"""

    top_p: float = 0.9
    """nucleus of sampling ({default})"""

    generation_seed: int = 0
    """noise of sampling ({default})"""

    generation_batch_size: int | None = None
    """rows at once (all)"""

    no_blinded: bool = False
    """without the blinded rating"""

    audit_seed: int = 0
    """what is drawn at random ({default})"""

    def __post_init__(self):
        for name in ("sample", "verify", "nulls"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must not be negative.")
        if 0 not in self.strengths:
            self.strengths = [0.0, *self.strengths]
        if len(set(self.strengths)) < 2:
            raise ValueError("--strengths needs one besides 0.")

    @property
    def as_messages(self) -> bool | None:
        """Whether prompts are a user's messages; None: where there is a chat template."""
        from sparsify_crosscoder.interventions.options import ChatOptions

        return ChatOptions(self.chat).wanted

    @property
    def sampling(self) -> Sampling:
        """How models go on."""
        from sparsify_crosscoder.interventions.generation import Sampling

        temperature = None if self.temperature == 0 else self.temperature
        return Sampling(self.max_new_tokens, temperature, self.top_p, self.generation_seed)

    def read_prompts(self) -> list[str]:
        """The prompts; raises ValueError for a file without any."""
        from sparsify_crosscoder.interventions.options import read_prompts

        return read_prompts(self.prompts, self.prompts_file)
