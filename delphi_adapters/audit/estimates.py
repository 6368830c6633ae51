"""What is left to do of an audit: counts, time and cost, before any of it is done.

Times are computed: operations and bytes of each stage over what this device does of them in a
short trial. They say whether to wait minutes or days; a stage that was done says what it took.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import AutoModel

from sparsify_crosscoder.evaluation.false_exclusives import called_exclusive
from sparsify_crosscoder.harvest.loading import load_config, load_tokenizer
from sparsify_crosscoder.harvest.model_name import ModelName
from sparsify_crosscoder.interventions.command_parts import read_prompts
from sparsify_crosscoder.runs.models import run_revisions
from sparsify_crosscoder.runs.texts import load_run_texts
from sparsify_crosscoder.store.dtypes import get_dtype
from sparsify_crosscoder.store.manifest import is_store
from sparsify_crosscoder.store.store import ActivationStore
from sparsify_crosscoder.text.windows import prepare_windows

from ..clients.costs import costs
from ..clients.judge import make_client
from ..clients.judge_time import JudgeSpeed, computed, duration, named_cautions
from ..clients.machine_speed import bytes_per_second, operations_per_second
from ..clients.records import USUAL_ANSWER
from ..commands.judge_options import judge_config
from ..explaining.flagging_prompt import few_shots, system_prompt
from ..judging.exclusivity import SteeredAnswers, requests
from ..judging.rubrics import Rubric
from .plan import STAGES, WHAT
from .stages import Record, state
from .workspace import Workspace

PROBED_TEXTS = 64
EFFICIENCY = 0.5  # of a large product, which the parts of a model reach
CHARACTERS = 4  # in a token
PROMPT_TOKENS = 40  # with a chat template
DETECTION_REQUESTS = 4  # of a latent
_SAID_APART = ("seconds", "left_out")


def estimate(work: Workspace, wanted: Sequence[str]) -> dict[str, Any]:
    """Print a line for each stage, and return the same as JSON values."""
    from ..commands.audit import inputs_of
    from .stage_table import stage_table

    table, left = stage_table(), Left(work)
    result: dict[str, Any] = {"out": str(work.out), "stages": {}, "stopped": None}
    seconds = 0.0
    for stage in wanted:
        known = all(name in work.records for name in STAGES[: STAGES.index(stage)])
        what = state(work.out / stage, inputs_of(work, table, stage)) if known else "to do"
        row: dict[str, Any] = {"state": what}
        if what == "done":
            record = Record.read(work.out / stage)
            assert record is not None
            work.records[stage] = record
            row["took"] = record.seconds
            print(f"{stage:<12} done, {duration(record.seconds)}: {WHAT[stage]}")
        else:
            counts = getattr(left, stage)()
            row |= counts
            seconds += counts.get("seconds") or 0.0
            said = ", ".join(
                _counted(k, v) for k, v in counts.items() if k not in _SAID_APART and v
            )
            about = "left out, no judge" if counts.get("left_out") else None
            about = about or f"{what}, about {duration(counts.get('seconds', 0.0))}"
            print(f"{stage:<12} {about}: {said or WHAT[stage]}")
        result["stages"][stage] = row
    print(f"In all about {duration(seconds)} on {work.device}, computed from a short trial of it.")
    result["seconds"] = seconds
    if work.judged and left.local_judge:
        print(
            f"What {work.args.judge} takes is computed from its size; it is timed on a few tokens "
            "before it is asked, and the time said again."
        )
        print("\n".join(named_cautions(work.args.judge)))
    dollars = [row["cost"] for row in result["stages"].values() if row.get("cost")]
    if dollars:
        result["likely_cost"] = sum(dollars)
        print(f"The judge about ${sum(dollars):,.2f}, with answers of {USUAL_ANSWER} tokens.")
    return result


@dataclass
class Model:
    """What one model takes: parameters up to its hookpoint, in all, and of its unembedding."""

    read: int
    whole: int
    unembedding: int


class Left:
    """What each stage would take."""

    def __init__(self, work: Workspace):
        self.work, self.args = work, work.args

    # What is known

    @cached_property
    def flops(self) -> float:
        """Operations a second of a large product in the models' precision."""
        return operations_per_second(self.work.device)

    @cached_property
    def bandwidth(self) -> float:
        """Bytes a second that are read and written."""
        return bytes_per_second(self.work.device)

    @cached_property
    def names(self) -> list[str]:
        if self.args.run:
            return [self.work.run_options.model, *self.work.run_options.partners]
        return list(self.args.models)

    @cached_property
    def configs(self) -> list[Any]:
        """Configurations of the models."""
        options = self.work.run_options if self.args.run else self.work.harvest_options
        return [
            load_config(ModelName(name, revision, options.hf_token, options.trust_remote_code))
            for name, revision in zip(self.names, run_revisions(options), strict=True)
        ]

    @cached_property
    def models(self) -> list[Model]:
        options = self.work.run_options if self.args.run else self.work.harvest_options
        found = []
        for s, config in enumerate(self.configs):
            with torch.device("meta"):
                model = AutoModel.from_config(config)
            whole = sum(p.numel() for p in model.parameters())
            layers = config.get_text_config().num_hidden_layers
            place = options.hookpoints[s] if options.hookpoints else f"layers.{layers // 2}"
            depth = next((int(p) for p in place.split(".") if p.isdecimal()), layers - 1) + 1
            embedding = model.get_input_embeddings().weight.numel()
            found.append(Model(int((whole - embedding) * depth / layers), whole, embedding))
        return found

    @cached_property
    def widths(self) -> list[int]:
        return [config.get_text_config().hidden_size for config in self.configs]

    @cached_property
    def pairs(self) -> int:
        """Pairs of the text: known from a store, or from a sample of the texts."""
        if self.args.run:
            summary = json.loads((self.work.run / "summary.json").read_text(encoding="utf-8"))
            return summary["pairs"]
        options = self.work.harvest_options
        place = options.dataset if is_store(options.dataset) else options.cache
        if place is not None and is_store(place):
            return len(ActivationStore.open(place))
        if options.pairs is not None:
            return options.pairs
        texts = load_run_texts(options)
        probe = texts.select(range(min(PROBED_TEXTS, len(texts))))
        windows = prepare_windows(
            probe,
            [
                load_tokenizer(
                    ModelName(name, revision, options.hf_token, options.trust_remote_code)
                )
                for name, revision in zip(self.names, run_revisions(options), strict=True)
            ],
            ctx_len=options.ctx_len,
            chat_format=options.chat_format,
            exclude_tokens=options.exclude_tokens,
        )
        return round(sum(windows["num_pairs"]) * len(texts) / len(probe))

    @cached_property
    def latents(self) -> int:
        """Latents to explain, at most."""
        args = self.args
        if args.latents[0].isdecimal():
            count = len(args.latents)
        elif self._trained:
            exclusive = sum(len(some) for some in called_exclusive(self.work.crosscoder))
            every = self.work.crosscoder.num_latents
            count = every if args.latents == ["all"] else exclusive
        else:
            sae = self.work.harvest_options.sae
            count = sae.resolve_num_latents(self.widths)
            if args.latents != ["all"]:
                count = round(count * sum(getattr(sae, "exclusive_fractions", [0.0])))
        return count if args.explain_limit is None else min(count, args.explain_limit)

    @cached_property
    def directions(self) -> int:
        """Directions to steer with, at most."""
        args = self.args
        return min(args.verify + args.sample, self.latents) + 2 * 2 * args.nulls

    @property
    def _trained(self) -> bool:
        return bool(self.args.run) or "train" in self.work.records

    def _sae(self) -> tuple[int, int]:
        """Latents and width of the dictionary."""
        if self._trained:
            return self.work.crosscoder.num_latents, self.work.crosscoder.d_in
        return self.work.harvest_options.sae.resolve_num_latents(self.widths), sum(self.widths)

    # Stages

    def harvest(self) -> dict[str, Any]:
        if self.args.run:
            return {"seconds": 0.0}
        options = self.work.harvest_options
        if is_store(options.dataset):
            return {"seconds": 0.0, "pairs": self.pairs}
        operations = sum(2 * model.read for model in self.models) * self.pairs
        size = sum(map(get_dtype(options.dtype).row_bytes, self.widths)) * self.pairs
        return {
            "seconds": operations / (self.flops * EFFICIENCY),
            "pairs": self.pairs,
            "gigabytes": size / 1e9,
        }

    def train(self) -> dict[str, Any]:
        if self.args.run:
            return {"seconds": 0.0}
        return self._training(self.work.harvest_options.max_steps)

    def null(self) -> dict[str, Any]:
        if self.args.null_steps == 0:
            return {"seconds": 0.0}
        options = self.work.run_options if self.args.run else self.work.harvest_options
        return self._training(self.args.null_steps or options.max_steps)

    def _training(self, steps: int | None) -> dict[str, Any]:
        options = self.work.run_options if self.args.run else self.work.harvest_options
        latents, width = self._sae()
        steps = steps or self.pairs * options.epochs // options.pairs_per_step
        # One product with every latent; the rest follows the few that are active.
        product = 2 * latents * width * options.pairs_per_step / (self.flops * EFFICIENCY)
        adam = 2 * latents * width * 28 / self.bandwidth
        return {"seconds": steps * (2 * product + adam), "steps": steps, "latents": latents}

    def cache(self) -> dict[str, Any]:
        latents, width = self._sae()
        operations = 2 * latents * width * self.pairs
        return {"seconds": 2 * operations / (self.flops * EFFICIENCY), "pairs": self.pairs}

    def filter(self) -> dict[str, Any]:
        pairs = min(self.args.filter_pairs, self.pairs)
        latents, width = self._sae()
        operations = 2 * width * (2 * width + latents) * pairs
        return {"seconds": operations / (self.flops * EFFICIENCY), "pairs": pairs}

    def describe(self) -> dict[str, Any]:
        count = self.latents + 2 * self.args.nulls
        # Each direction through an unembedding, and each model read once from the disk.
        products = sum(2 * count * model.unembedding for model in self.models)
        read = sum(4 * model.whole for model in self.models)
        seconds = products / (self.flops * EFFICIENCY) + read / self.bandwidth
        return {"seconds": seconds, "latents": count}

    def explain(self) -> dict[str, Any]:
        if not self.work.judged:
            return {"seconds": 0.0, "left_out": True}
        fixed = len(system_prompt()) + sum(len(shot["content"]) for shot in few_shots(True))
        cfg = self.work.judging_config
        shown = cfg.num_examples * cfg.example_ctx_len * CHARACTERS * 2  # text and activations
        return self._asking([fixed + shown], self.latents)

    def score(self) -> dict[str, Any]:
        if not self.work.judged:
            return {"seconds": 0.0, "left_out": True}
        cfg = self.work.judging_config
        fixed = len(system_prompt()) // 2
        shown = cfg.n_examples_shown * cfg.example_ctx_len * CHARACTERS
        return self._asking([fixed + shown] * DETECTION_REQUESTS, self.latents)

    def stitch(self) -> dict[str, Any]:
        if self.args.stitching:
            return {"seconds": 0.0}
        pairs = self.args.stitch_pairs + self.args.stitch_held_out_pairs
        operations = sum(2 * model.read for model in self.models) * pairs
        return {"seconds": operations / (self.flops * EFFICIENCY), "pairs": pairs}

    def exclusivity(self) -> dict[str, Any]:
        args, prompts = self.args, read_prompts(self.args)
        if not self.work.judged:
            rows = len(prompts) * (len(args.strengths) - 1) * self.directions
            read = sum(2 * model.whole for model in self.models) * rows * PROMPT_TOKENS
            return {"seconds": read / (self.flops * EFFICIENCY), "directions": self.directions}
        text = "word " * (args.max_new_tokens * CHARACTERS // 5)
        answers = [[text] * len(args.strengths)] * len(prompts)
        asked = requests(
            SteeredAnswers(prompts, list(args.strengths), answers, answers),
            blinded=not args.no_blinded,
        )
        sizes = [sum(len(message["content"]) for message in one) for one in asked]
        rows = len(prompts) * len(args.strengths)
        tokens = rows * args.max_new_tokens * self.directions
        # Writing, then reading what was written to measure it.
        steering = sum(
            tokens * 3 * 2 * model.whole / (self.flops * EFFICIENCY)
            + args.max_new_tokens * self.directions * 2 * model.whole / self.bandwidth
            for model in self.models
        )
        asking = self._asking(sizes, self.directions)
        asking["seconds"] += steering
        return {"directions": self.directions, "tokens to write": 2 * tokens, **asking}

    def rubrics(self) -> dict[str, Any]:
        features = min(self.args.rubric_features, self.latents)
        total: dict[str, Any] = {"seconds": 0.0}
        for name in self.args.rubrics:
            rubric = Rubric.load(name)
            size = rubric.sampling.max_new_tokens
            answer = "word " * (size * CHARACTERS // 5)
            rows = len(rubric.prompts) * len(rubric.strengths) * features
            asked = [message["content"] for message in rubric.messages(rubric.prompts[0], answer)]
            one = self._asking([sum(map(len, asked))], 2 * rows)
            one["seconds"] += self._writing(rows, size)
            one["tokens to write"] = 2 * rows * size
            total = {key: total.get(key, 0) + (value or 0) for key, value in one.items()}
        return total

    def _writing(self, rows: int, new_tokens: int) -> float:
        """Seconds in which both models write so many answers, all strengths of a prompt at once."""
        return sum(
            rows * new_tokens * 2 * model.whole / (self.flops * EFFICIENCY)
            + rows / 10 * new_tokens * 2 * model.whole / self.bandwidth
            for model in self.models
        )

    def report(self) -> dict[str, Any]:
        return {"seconds": 30.0}

    def _asking(self, sizes: Sequence[int], items: int) -> dict[str, Any]:
        """Requests of so many characters, for each of so many items."""
        count = len(sizes) * items
        tokens = sum(sizes) * items // CHARACTERS
        result: dict[str, Any] = {"requests": count, "prompt tokens": tokens, "seconds": 0.0}
        if self._client is not None:
            prompts = ["x" * size for size in sizes]
            dollars = costs(self._client, prompts, items).dollars
            result["cost"] = None if dollars is None else dollars.likely_cost
        elif self.local_judge:
            result["seconds"] = self._judge_speed.seconds(tokens, count * USUAL_ANSWER)
        return result

    @property
    def local_judge(self) -> bool:
        """Whether the judge is a model on the own machine."""
        return judge_config(self.args).local

    @cached_property
    def _client(self) -> Any:
        if self.local_judge:
            return None
        try:
            return make_client(judge_config(self.args), self.work.out, dry_run=True)
        except ValueError as error:
            print(f"No cost can be told: {error}")
            return None

    @cached_property
    def _judge_speed(self) -> JudgeSpeed:
        return computed(self.args.judge, self.flops, self.bandwidth)


def _counted(name: str, value: Any) -> str:
    if name == "cost":
        return f"${value:,.2f}"
    return f"{value:,.1f} {name}" if isinstance(value, float) else f"{value:,} {name}"
