"""What the commands that run language models share: options, prompts, models."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..activations.sources import load_language_model, pick_device
from ..crosscoders import Crosscoder
from .generation import PROMPTS, Sampling

if TYPE_CHECKING:
    from ..cli import RunConfig

CHAT = {"auto": None, "yes": True, "no": False}


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command that runs a model."""
    parser.add_argument("--device", default=None, help="device to run on")
    parser.add_argument(
        "--model_dtype", default="auto", help="auto, float32, bfloat16 or float16 (auto)"
    )
    parser.add_argument("--hf_token", default=None, help="token for gated or private models")
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run the code that comes with a model"
    )
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
    lines = args.prompts_file.read_text(encoding="utf-8").splitlines()
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"'{args.prompts_file}' has no prompts; put one on each line.")
    return prompts


def device_of(args: argparse.Namespace) -> torch.device:
    return pick_device(args.device)


def load_model(args: argparse.Namespace, name: str, revision: str | None = None) -> tuple[Any, Any]:
    """The language model of a name and its tokenizer, as the options say."""
    return load_language_model(
        name,
        device=device_of(args),
        dtype=args.model_dtype,
        revision=revision,
        token=args.hf_token,
        trust_remote_code=args.trust_remote_code,
    )


class End(NamedTuple):
    """One of a run's models, as a place to steer."""

    model: str
    revision: str | None
    hookpoint: str


def ends_of(options: RunConfig, crosscoder: Crosscoder) -> list[End]:
    """The models of a run in the order of its crosscoder's sources."""
    names = [options.model, *options.partners]
    revisions = [options.revision, *[None] * len(options.partners)]
    hookpoints = [source["hookpoint"] for source in crosscoder.sources]
    return [End(*end) for end in zip(names, revisions, hookpoints, strict=True)]


def source_of(ends: Sequence[End], model: str, hookpoint: str) -> int:
    """Which of a run's models a vector belongs to; raises ValueError if to none."""
    found = [
        s
        for s, end in enumerate(ends)
        if end.hookpoint == hookpoint and Path(end.model).name == Path(model).name
    ]
    if len(found) != 1:
        sources = ", ".join(f"{end.model} {end.hookpoint}" for end in ends)
        raise ValueError(
            f"The vector is of '{model}' at {hookpoint}, and the run's sources are {sources}. "
            "Make the vector at the run's hookpoint, or say with --source which one it is for."
        )
    return found[0]
