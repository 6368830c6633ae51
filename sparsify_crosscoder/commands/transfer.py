"""`sparsify-crosscoder transfer RUN VECTOR`: a vector of one model for another."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..command_line import execute
from ..crosscoders import Crosscoder
from ..harvest.model_identity import short_names
from ..interventions.command_parts import (
    CHAT,
    add_model_options,
    add_prompt_options,
    device_of,
    load_model,
    read_prompts,
    source_of,
)
from ..interventions.effects import word_effects
from ..interventions.steering import Steering
from ..interventions.stitching import Stitching
from ..interventions.transfer import NUM_LATENTS, Transferred, random_transfers, transfer
from ..interventions.vectors import SteeringVector, cosine
from ..runs.models import End, ends_of

STRENGTHS = (0.0, 0.5, 1.0, 2.0)


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    execute(_parser(), run, argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Transfer a vector, write it, compare it with the stitched one and with chance."""
    from ..runs.config import load_run_config

    vector = SteeringVector.load(args.vector)
    if args.out.exists():
        SteeringVector.load(args.out)  # raises for what must not be overwritten
    configured = load_run_config(args.run, args.hf_token, trust_remote_code=args.trust_remote_code)
    crosscoder = Crosscoder.load_one(args.run, args.seed, device_of(args))
    ends = ends_of(configured, crosscoder.sources)
    source = args.source
    if source is None:
        source = source_of(ends, vector)
    target = args.target if args.target is not None else int(source == 0)

    stitching = None if args.stitching is None else Stitching.load(args.stitching)
    if stitching is not None:
        stitching.check_sources(crosscoder.sources)
    found = transfer(
        crosscoder,
        vector.vector * vector.scale,
        source,
        target,
        num_latents=args.num_latents,
        norm=args.norm,
    )
    explanations = read_explanations(args.features or args.run / "delphi" / "features.parquet")
    here, there = ends[source], ends[target]
    print(f"{here.model} {here.hookpoint} -> {there.model} {there.hookpoint}")
    print(found.table(explanations))
    result: dict[str, Any] = {
        "source": {"model": here.model, "hookpoint": here.hookpoint},
        "target": {"model": there.model, "hookpoint": there.hookpoint},
        "norm": float(found.vector.norm()),
        "latents": found.rows(explanations),
        "vector": str(args.out),
    }
    made_of = {"kind": "transfer", "from": str(args.vector), "run": str(args.run)}
    made_of |= {"latents": result["latents"], "source": vector.provenance}
    moved = SteeringVector(
        *(found.vector, there.model, there.hookpoint, 1.0, made_of),
        checkpoint=there.checkpoint,
        revision=there.revision,
    )
    moved.save(args.out)
    print(f"The transferred vector is in {args.out}.")

    candidates = {"transferred": found.vector}
    if stitching is not None:
        stitched = stitching.direction(vector.vector * vector.scale, source)
        candidates["stitched"] = stitched
        result["cosine_with_stitched"] = cosine(found.vector, stitched)
        print(f"cosine with the stitched vector: {result['cosine_with_stitched']:.3f}")
    if args.words:
        result["effects"] = _effects(args, crosscoder, vector, found, candidates, (here, there))
    return result


def _effects(
    args: argparse.Namespace,
    crosscoder: Crosscoder,
    vector: SteeringVector,
    found: Transferred,
    candidates: Mapping[str, Tensor],
    ends: tuple[End, End],
) -> dict[str, Any]:
    """Probability of the words in both models, and by random latents in the target."""
    here, there = ends
    prompts, strengths = read_prompts(args), args.strengths
    options = {"chat": CHAT[args.chat]}
    names = short_names([here.model, there.model])
    model, tokenizer = load_model(args, here.model, here.revision, here.checkpoint)
    own = Steering(vector.vector, here.hookpoint, vector.scale)
    original = word_effects(
        model, prompts, [own], strengths, args.words, tokenizer=tokenizer, **options
    )[0]
    del model
    model, tokenizer = load_model(args, there.model, there.revision, there.checkpoint)
    controls = random_transfers(
        crosscoder, vector.vector * vector.scale, found, args.controls, norm=args.norm
    )
    vectors = [*candidates.values(), *(control.vector for control in controls)]
    steering = [Steering(one, there.hookpoint) for one in vectors]
    moved = word_effects(
        model, prompts, steering, strengths, args.words, tokenizer=tokenizer, **options
    )
    rows = {f"{names[0]}, original": original}
    for name, values in zip(candidates, moved, strict=False):
        rows[f"{names[1]}, {name}"] = values
    by_chance = moved[len(candidates) :]
    rows["random latents, mean"] = by_chance.mean(0)
    rows["random latents, largest"] = by_chance.max(0).values
    as_strong = (by_chance >= moved[0]).sum(0)
    last = f"draws of {len(controls)} that do as much"
    width = max(map(len, [*rows, last]))
    print("\nprobability of the words, by strength")
    print(" " * width + "".join(f"{s:>9g}" for s in strengths))
    for name, values in rows.items():
        print(f"{name:<{width}}" + "".join(f"{value:>9.4f}" for value in values.tolist()))
    print(f"{last:<{width}}" + "".join(f"{count:>9}" for count in as_strong.tolist()))
    return {
        "words": list(args.words),
        "prompts": prompts,
        "strengths": list(strengths),
        "original": original.tolist(),
        **{name: values.tolist() for name, values in zip(candidates, moved, strict=False)},
        "random": by_chance.tolist(),
        "random_as_strong": as_strong.tolist(),
    }


def read_explanations(path: Path) -> dict[int, str]:
    """Explanations by latent from a `features.parquet`, as `python -m delphi_adapters explain`
    writes it; none where the file is missing. Raises ValueError for another file."""
    if not path.exists():
        return {}
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["latent", "explanation"])
    except pa.ArrowException as error:
        raise ValueError(f"'{path}' has no latents with explanations: {error}") from error
    rows = table.to_pylist()
    return {row["latent"]: row["explanation"] for row in rows if row["explanation"]}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparsify-crosscoder transfer",
        description="Carry a vector from one model of a run to another by the latents that both "
        "share, and with --words see whether it does there what it does here, beside as many "
        "random latents.",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("vector", type=Path, help="a file of `persona` or SteeringVector.save")
    parser.add_argument("--out", type=Path, required=True, help="file to write the vector to")
    parser.add_argument(
        "--source", type=int, default=None, help="the vector's model (by its weights)"
    )
    parser.add_argument("--target", type=int, default=None, help="the other model (the first)")
    parser.add_argument(
        "--num_latents", type=int, default=NUM_LATENTS, help=f"latents to use ({NUM_LATENTS})"
    )
    parser.add_argument(
        "--norm",
        choices=("normalised", "raw"),
        default="normalised",
        help="length to keep: in multiples of each model's activations, or as a number (eq. 17)",
    )
    parser.add_argument("--stitching", type=Path, help="compare with this folder of `stitch`")
    parser.add_argument(
        "--features", type=Path, help="table with explanations (RUN/delphi/features.parquet)"
    )
    parser.add_argument("--words", nargs="+", default=[], help="words whose probability to follow")
    parser.add_argument(
        "--strengths", type=float, nargs="+", default=list(STRENGTHS), help="0 0.5 1 2"
    )
    parser.add_argument("--controls", type=int, default=20, help="random draws (20)")
    parser.add_argument("--seed", type=int, default=None, help="which of several --init_seeds")
    add_prompt_options(parser)
    add_model_options(parser)
    return parser
