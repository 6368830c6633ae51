"""What the commands that run language models share: options, prompts, models."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..command_line import add_hub_options
from ..hardware import pick_device
from ..harvest.model_identity import same_model, same_name
from ..records import reading
from ..runs.models import End, Loading
from .generation import PROMPTS, Sampling
from .vectors import SteeringVector

CHAT = {"auto": None, "yes": True, "no": False}


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command that runs a model."""
    parser.add_argument("--device", default=None, help="device to run on")
    parser.add_argument(
        "--model_dtype", default="auto", help="auto, float32, bfloat16 or float16 (auto)"
    )
    add_hub_options(parser)
    parser.add_argument("--json", type=Path, help="also write everything to this file")


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """Options that say what the model goes on from."""
    parser.add_argument("--prompts", nargs="+", help="prompts (three open questions, B.5)")
    parser.add_argument("--prompts_file", type=Path, help="a text file with one prompt a line")
    add_chat_option(parser)


def add_chat_option(parser: argparse.ArgumentParser) -> None:
    """Whether prompts are a user's messages."""
    parser.add_argument(
        "--chat",
        choices=list(CHAT),
        default="auto",
        help="whether prompts are a user's messages; auto: where there is a chat template",
    )


def add_sampling_options(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    """Options that say how the model goes on."""
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        default=max_new_tokens,
        help=f"length of an answer ({max_new_tokens})",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.7, help="of sampling; 0 for the likeliest (0.7)"
    )
    parser.add_argument("--top_p", type=float, default=0.9, help="nucleus of sampling (0.9)")
    parser.add_argument("--generation_seed", type=int, default=0, help="noise of sampling (0)")
    parser.add_argument("--batch_size", type=int, default=None, help="rows at once (all)")


def sampling(args: argparse.Namespace) -> Sampling:
    """What the options of `add_sampling_options` ask for."""
    temperature = None if args.temperature == 0 else args.temperature
    return Sampling(args.max_new_tokens, temperature, args.top_p, args.generation_seed)


def read_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts of `add_prompt_options`; raises ValueError for a file without any."""
    if args.prompts and args.prompts_file:
        raise ValueError("Give --prompts or --prompts_file, not both.")
    if args.prompts_file is None:
        return list(args.prompts or PROMPTS)
    with reading(args.prompts_file, "Save it as text in UTF-8, one prompt a line."):
        lines = args.prompts_file.read_text(encoding="utf-8").splitlines()
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"'{args.prompts_file}' has no prompts; put one on each line.")
    return prompts


def device_of(args: argparse.Namespace) -> torch.device:
    return pick_device(args.device)


def load_model(
    args: argparse.Namespace,
    name: str,
    revision: str | None = None,
    checkpoint: str | None = None,
) -> tuple[Any, Any]:
    """The language model of a name and its tokenizer, as the options say.

    Raises ValueError if it cannot be loaded, or its checkpoint has another digest than
    `checkpoint`.
    """
    loading = Loading(device_of(args), args.model_dtype, args.hf_token, args.trust_remote_code)
    return loading.load(name, revision, checkpoint)


def _described(one: End | SteeringVector) -> dict[str, Any]:
    return {"name": one.model, "revision": one.revision, "checkpoint": one.checkpoint}


def source_of(ends: Sequence[End], vector: SteeringVector) -> int:
    """Which of a run's models a vector belongs to, by the digest of its checkpoint.

    Of vectors and runs that have none by the model's name and revision. Raises ValueError if it
    belongs to none, or to several.
    """

    def is_of(end: End) -> bool:
        return end.hookpoint == vector.hookpoint and same_model(*map(_described, (end, vector)))

    found = [s for s, end in enumerate(ends) if is_of(end)]
    if len(found) != 1:
        sources = ", ".join(f"{end.model} {end.hookpoint}" for end in ends)
        named = [end for end in ends if same_name(end.model, vector.model)]
        reason = ""
        if len(found) > 1:
            reason = f" {len(found)} of these are that model there."
        elif any(end.hookpoint == vector.hookpoint for end in named):
            reason = " The model of that name had other weights when the vector was made."
        raise ValueError(
            f"The vector is of '{vector.model}' at {vector.hookpoint}, and the run's sources are "
            f"{sources}.{reason} Make the vector at the run's hookpoint, or say with --source "
            "which one it is for."
        )
    return found[0]
