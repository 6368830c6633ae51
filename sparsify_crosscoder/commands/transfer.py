"""`sparsify-crosscoder transfer RUN VECTOR`: a vector of one model for another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..command_line import run_command
from ..command_options import group, option
from ..interventions.options import ModelOptions, PromptOptions
from ..interventions.stitching import Stitching
from ..interventions.transfer import NUM_LATENTS, Norm, read_explanations, transfer
from ..interventions.vector_source import source_of
from ..interventions.vectors import SteeringVector, cosine
from ..interventions.word_comparison import STRENGTHS, WordTest, compare_words
from ..runs.models import ends_of
from ..runs.run import Run


@dataclass(frozen=True)
class Options:
    """Carry a vector from one model of a run to another by the latents that both share, and with
    --words see whether it does there what it does here, beside as many random latents."""

    run: Path = option(positional=True)
    """run folder"""

    vector: Path = option(positional=True)
    """a file of `persona` or SteeringVector.save"""

    out: Path = option()
    """file to write the vector to"""

    source: int | None = None
    """the vector's model (by its weights)"""

    target: int | None = None
    """the other model (the first)"""

    num_latents: int = NUM_LATENTS
    """latents to use ({default})"""

    norm: Norm = "normalised"
    """length to keep: in multiples of each model's activations, or as a number (eq. 17)"""

    stitching: Path | None = None
    """compare with this folder of `stitch`"""

    features: Path | None = None
    """table with explanations (RUN/delphi/features.parquet)"""

    words: list[str] = option([])
    """words whose probability to follow"""

    strengths: list[float] = option(list(STRENGTHS))
    """0 0.5 1 2"""

    controls: int = 20
    """random draws ({default})"""

    seed: int | None = None
    """which of several --init_seeds"""

    prompts: PromptOptions = group(PromptOptions)
    models: ModelOptions = group(ModelOptions)


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_command("sparsify-crosscoder transfer", Options, show, argv)


def show(options: Options) -> dict[str, Any]:
    """Transfer a vector, write it, compare it with the stitched one and with chance."""
    vector = SteeringVector.load(options.vector)
    if options.out.exists():
        SteeringVector.load(options.out)  # raises for what must not be overwritten
    loading = options.models.loading
    run = Run.open(options.run, **options.models.hub.access)
    crosscoder = run.crosscoder(options.seed, loading.device)
    ends = ends_of(run.config, crosscoder.sources)
    source = source_of(ends, vector) if options.source is None else options.source
    target = options.target if options.target is not None else int(source == 0)

    stitching = None if options.stitching is None else Stitching.load(options.stitching)
    if stitching is not None:
        stitching.check_sources(crosscoder.sources)
    found = transfer(
        crosscoder,
        vector.vector * vector.scale,
        source,
        target,
        num_latents=options.num_latents,
        norm=options.norm,
    )
    explanations = read_explanations(
        options.features or options.run / "delphi" / "features.parquet"
    )
    here, there = ends[source], ends[target]
    print(f"{here.model} {here.hookpoint} -> {there.model} {there.hookpoint}")
    print(found.table(explanations))
    result: dict[str, Any] = {
        "source": {"model": here.model, "hookpoint": here.hookpoint},
        "target": {"model": there.model, "hookpoint": there.hookpoint},
        "norm": float(found.vector.norm()),
        "latents": found.rows(explanations),
        "vector": str(options.out),
    }
    made_of = {"kind": "transfer", "from": str(options.vector), "run": str(options.run)}
    made_of |= {"latents": result["latents"], "source": vector.provenance}
    moved = SteeringVector(
        *(found.vector, there.model, there.hookpoint, 1.0, made_of),
        checkpoint=there.checkpoint,
        revision=there.revision,
    )
    moved.save(options.out)
    print(f"The transferred vector is in {options.out}.")

    candidates = {"transferred": found.vector}
    if stitching is not None:
        stitched = stitching.direction(vector.vector * vector.scale, source)
        candidates["stitched"] = stitched
        result["cosine_with_stitched"] = cosine(found.vector, stitched)
        print(f"cosine with the stitched vector: {result['cosine_with_stitched']:.3f}")
    if options.words:
        test = WordTest(
            options.words,
            options.prompts.read(),
            options.strengths,
            options.prompts.chat.wanted,
            options.controls,
            options.norm,
        )
        compared = compare_words(
            crosscoder, vector, found, candidates, test, (here, there), loading
        )
        print(f"\n{compared.table()}")
        result["effects"] = compared.to_dict()
    return result
