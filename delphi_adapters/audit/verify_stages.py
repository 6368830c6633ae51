"""Whether latents do in their own model what they do not do in the other: stitch, exclusivity."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

from tqdm.auto import tqdm

from sparsify_crosscoder.commands import stitch as stitch_command
from sparsify_crosscoder.files import atomic_write_json, remove_leftovers
from sparsify_crosscoder.interventions.command_parts import CHAT, read_prompts
from sparsify_crosscoder.interventions.effects import dose_response
from sparsify_crosscoder.interventions.generation import Sampling
from sparsify_crosscoder.interventions.stitching import Stitching, StitchingConfig
from sparsify_crosscoder.records import read_json

from ..clients.judge_time import say_time
from ..judging import exclusivity as exclusivity_files
from ..judging.exclusivity import Exclusivity, ExclusivityJudge, SteeredAnswers, requests
from ..judging.results import file_name
from ..progress import progress
from .directions import Direction, directions_to_verify, load_stitching
from .explain_stages import ask, at_once, judge_inputs, ledger
from .likeness_stage import likeness_inputs, measure_likeness
from .stages import Outcome
from .workspace import Workspace

STEERED = "steered"


class _Steered(TypedDict):
    """What the answers of one model to one direction are kept as."""

    model: str
    prompts: list[str]
    strengths: list[float]
    answers: list[list[str]]
    measures: dict[str, list[list[Any]]]


ROLES = ("original", "partner")


def stitch_inputs(work: Workspace) -> dict[str, Any]:
    if work.args.stitching is not None:
        return {"given": str(work.args.stitching.resolve())}
    names = ("stitch_dataset", "stitch_pairs", "stitch_held_out_pairs")
    return {name: getattr(work.args, name) for name in names}


def stitch(work: Workspace, folder: Path) -> Outcome:
    """Fit the maps between both models, on text that the run did not train on."""
    if work.args.stitching is not None:
        stitching = Stitching.load(work.args.stitching)
        stitching.check_sources(work.crosscoder.sources)
        config = json.loads((work.args.stitching / "cfg.json").read_text(encoding="utf-8"))
        return Outcome({"report": stitching.report}, identity=config["sha256"])
    default = StitchingConfig()
    stitch_command.run(
        argparse.Namespace(
            run=work.run,
            out=folder / "stitching",
            dataset=work.args.stitch_dataset,
            split=work.run_options.split,
            data_args="",
            text_column=None,
            pairs=work.args.stitch_pairs,
            held_out_pairs=work.args.stitch_held_out_pairs,
            sources=default.sources,
            inversion_weight=default.inversion_weight,
            steps=default.steps,
            learning_rate=default.learning_rate,
            seed=0,
            device=str(work.device),
            hf_token=work.args.hf_token,
            trust_remote_code=work.args.trust_remote_code,
        )
    )
    made = folder / "stitching"
    config = json.loads((made / "cfg.json").read_text(encoding="utf-8"))
    return Outcome(
        {"report": Stitching.load(made).report}, sorted(made.iterdir()), identity=config["sha256"]
    )


def exclusivity_inputs(work: Workspace) -> dict[str, Any]:
    if not work.judged:
        return likeness_inputs(work)
    names = ("verify", "sample", "nulls", "audit_seed", "chat", "no_blinded")
    return {
        **judge_inputs(work),
        **{name: getattr(work.args, name) for name in names},
        "prompts": read_prompts(work.args),
        "strengths": work.args.strengths,
        "sampling": asdict(sampling(work)),
    }


def exclusivity(work: Workspace, folder: Path) -> Outcome:
    """Steer both models with every direction, and have the answers judged.

    Without a judge nothing is written: what steering does to the next words is compared.
    """
    if not work.judged:
        return measure_likeness(work, folder)
    directions, facts = directions_to_verify(work)
    for source in range(2):
        steer(work, folder / STEERED, directions, source)
    results = _judged(work, folder, directions)
    failed = sum(not _settled(one) for one in results.values())
    listed = [
        {"name": one.name, "why": one.why, "source": one.source, "latent": one.latent}
        for one in directions
    ]
    return Outcome(
        {**facts, "directions": listed, "ledger": ledger(work)},
        [folder / "exclusivity" / f"{file_name(name)}.json" for name in results],
        unfinished=f"{failed:,} directions got no answer" if failed else None,
    )


def steer(work: Workspace, folder: Path, directions: Sequence[Direction], source: int) -> None:
    """Steer one model with its own directions and the other's, except where that was done."""
    remove_leftovers(folder)
    todo = [
        (one, role)
        for one in directions
        if not steered_file(folder, one.name, role := ROLES[one.source != source]).exists()
    ]
    if not todo:
        return
    stitching = load_stitching(work)
    model, tokenizer = work.language_model(source)
    hookpoint, prompts = work.ends[source].hookpoint, read_prompts(work.args)
    name = work.model_name(source)
    for one, role in tqdm(todo, desc=f"Steering {name}", unit="direction"):
        found = dose_response(
            model,
            prompts,
            one.steering(hookpoint) if role == "original" else one.stitched(hookpoint, stitching),
            work.args.strengths,
            sampling=sampling(work),
            tokenizer=tokenizer,
            chat=CHAT[work.args.chat],
            batch_size=work.args.generation_batch_size,
        )
        answers = found.generations.answers
        atomic_write_json(
            steered_file(folder, one.name, role),
            {
                "model": work.ends[source].model,
                "prompts": prompts,
                "strengths": [dose[0] for dose in found.strengths],
                "answers": [[answer.text for answer in row] for row in answers],
                "measures": {m: values.tolist() for m, values in found.measures.items()},
            },
        )
    del model
    gc.collect()


def steered_file(folder: Path, name: str, role: str) -> Path:
    """Where the answers of one model to one direction are."""
    return folder / f"{file_name(name)}.{role}.json"


def read_steered(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `steer` wrote of a direction: the original's answers, and the partner's."""
    remedy = "Delete it, and that model is steered again."
    original, partner = (
        read_json(steered_file(folder, name, role), _Steered, remedy) for role in ROLES
    )
    return original, partner


def sampling(work: Workspace) -> Sampling:
    args = work.args
    temperature = None if args.temperature == 0 else args.temperature
    return Sampling(args.max_new_tokens, temperature, args.top_p, args.generation_seed)


def _settled(result: Exclusivity | None) -> bool:
    """Whether the judge answered, be it unreadably."""
    if result is None:
        return False
    asked = [r for p in result.prompts for r in (p.interpretability, p.similarity, p.blinded)]
    return all(rating.status != "failed" for rating in asked if rating is not None)


def _answers(folder: Path, one: Direction) -> SteeredAnswers:
    original, partner = read_steered(folder / STEERED, one.name)
    return SteeredAnswers(
        original["prompts"], original["strengths"], original["answers"], partner["answers"]
    )


def _judged(
    work: Workspace, folder: Path, directions: Sequence[Direction]
) -> dict[str, Exclusivity]:
    judge = ExclusivityJudge(work.client, blinded=not work.args.no_blinded)
    before = exclusivity_files.load(folder)
    todo = [one for one in directions if not _settled(before.get(one.name))]

    async def all_of_them() -> None:
        slots = asyncio.Semaphore(at_once(work))

        async def one_of_them(one: Direction) -> None:
            async with slots:
                answers = _answers(folder, one)
                result = await judge(one.name, one.kind, one.source, answers)
                exclusivity_files.save(result, folder)
                bar.update()

        async with progress(len(todo), "Judging steered answers", "direction") as bar:
            await asyncio.gather(*map(one_of_them, todo))

    if todo:
        first = _answers(folder, todo[0])
        prompts = requests(first, blinded=not work.args.no_blinded)
        say_time(work.client, prompts, len(todo), f"rating {len(todo):,} directions")
        ask(work, all_of_them())
    found = exclusivity_files.load(folder)
    return {one.name: found[one.name] for one in directions}
