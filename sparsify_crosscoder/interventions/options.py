"""Options of whatever runs language models: prompts, sampling, models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..command_options import HubOptions, group
from ..hardware import pick_device
from ..records import reading
from ..runs.models import Loading
from .generation import PROMPTS, Sampling

CHAT = {"auto": None, "yes": True, "no": False}


@dataclass(frozen=True)
class ModelOptions:
    """Options of every command that runs a model."""

    device: str | None = None
    """device to run on"""

    model_dtype: str = "auto"
    """auto, float32, bfloat16 or float16 ({default})"""

    hub: HubOptions = group(HubOptions)

    json: Path | None = None
    """also write everything to this file"""

    @property
    def loading(self) -> Loading:
        """How models are loaded; raises ValueError for a device that is not there."""
        access = self.hub
        device = pick_device(self.device)
        return Loading(device, self.model_dtype, access.hf_token, access.trust_remote_code)


@dataclass(frozen=True)
class ChatOptions:
    """Whether prompts are a user's messages."""

    chat: Literal["auto", "yes", "no"] = "auto"
    """whether prompts are a user's messages; auto: where there is a chat template"""

    @property
    def wanted(self) -> bool | None:
        """The same as `generate` takes it."""
        return CHAT[self.chat]


@dataclass(frozen=True)
class PromptOptions:
    """What the model goes on from."""

    prompts: list[str] | None = None
    """prompts (three open questions, B.5)"""

    prompts_file: Path | None = None
    """a text file with one prompt a line"""

    chat: ChatOptions = group(ChatOptions)

    def read(self) -> list[str]:
        """The prompts; see `read_prompts`."""
        return read_prompts(self.prompts, self.prompts_file)


@dataclass(frozen=True)
class SamplingOptions:
    """How the model goes on."""

    max_new_tokens: int = Sampling.max_new_tokens
    """length of an answer ({default})"""

    temperature: float = 0.7
    """of sampling; 0 for the likeliest ({default})"""

    top_p: float = 0.9
    """nucleus of sampling ({default})"""

    generation_seed: int = 0
    """noise of sampling ({default})"""

    batch_size: int | None = None
    """rows at once (all)"""

    @property
    def sampling(self) -> Sampling:
        temperature = None if self.temperature == 0 else self.temperature
        return Sampling(self.max_new_tokens, temperature, self.top_p, self.generation_seed)


def read_prompts(prompts: Sequence[str] | None, file: Path | None) -> list[str]:
    """Prompts that are given or stand in a file, one a line; without either those of B.5.

    Raises ValueError for both, and for a file without any.
    """
    if prompts and file:
        raise ValueError("Give --prompts or --prompts_file, not both.")
    if file is None:
        return list(prompts or PROMPTS)
    with reading(file, "Save it as text in UTF-8, one prompt a line."):
        lines = file.read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if line.strip()]
    if not found:
        raise ValueError(f"'{file}' has no prompts; put one on each line.")
    return found
