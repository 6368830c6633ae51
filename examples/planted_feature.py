"""A feature that only one model has: found, steered with, and without effect in the other model.

    python examples/planted_feature.py --data runs/demo-data --out runs/planted

On the demo's models and activations. A direction is added to SmolLM2's stream where chance says, on
1% of the tokens, so what is exclusive to it is known, and so is its effect: what SmolLM2 says when
the direction is added at every token. Then, as with any two models:

1. a residual DFC is trained on the pairs, filtered and clustered, and its first latent is taken;
2. SmolLM2 is steered with that latent: does it do what the planted direction does?
3. Gemma is steered with the latent's stitched vector, at its own length and at the planted one's.

Effects are compared by how they change the probability of the words that both models know.
Controls: random directions and the next exclusive latents must not have the planted effect in
SmolLM2, and a direction that both models have (negative texts less positive ones) must keep its
effect when it is stitched into Gemma, or 3 would show nothing. Stitching is fitted to pairs that
the crosscoder was not trained on. Three minutes on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from nulls_and_plants import HELD_OUT, Control, judge, plant, train
from torch import Tensor
from transfer_a_vector import TRAITS

from sparsify_crosscoder import ActivationStore, Crosscoder, Stitching, fit_stitching
from sparsify_crosscoder.evaluation.top import largest_activations
from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.harvest.sources import load_language_model
from sparsify_crosscoder.interventions.likeness import (
    Changes,
    common_words,
    likeness,
    word_changes,
)
from sparsify_crosscoder.interventions.persona import persona_vectors
from sparsify_crosscoder.interventions.steering import Steering
from sparsify_crosscoder.store.tensor_stream import TensorStream
from sparsify_crosscoder.training.allocator import keep_freed_memory

SIZE = 0.5  # of the planted direction, in median norms
STITCHING_TEST = 8_192  # of the pairs that are held out
CONTROLS = 5
SHOWN_WORDS = 8
PROMPTS = (
    "The results of the experiment show that",
    "In the middle of the night",
    "My favourite thing about",
    "According to the report, the",
    "She opened the letter and",
    "To use this function, you",
    "The first thing that I noticed was",
    "Yesterday the committee decided",
    "He looked at the sky and said",
    "This chapter describes how",
    "The children went to the",
    "If the value is not found, the",
)


@dataclass
class Subject:
    """A model, its tokenizer, where it is steered, and its tokens for the common words."""

    model: Any
    tokenizer: Any
    hookpoint: str
    words: Tensor

    def changes(self, vector: Tensor) -> Changes:
        """What adding a raw vector at every token does."""
        steering = Steering(vector, self.hookpoint)
        return word_changes(
            self.model, self.tokenizer, PROMPTS, [steering], [1.0], self.words, chat=False
        )


def subjects(models: Sequence[Any], tokenizers: Sequence[Any], hookpoints: Sequence[str]):
    """Both models with the words that they have in common."""
    words = common_words(*tokenizers)
    return [Subject(*parts) for parts in zip(models, tokenizers, hookpoints, words, strict=True)]


def investigate(
    pair: Sequence[Subject],
    control: Control,
    crosscoder: Crosscoder,
    stitching: Stitching,
    args: argparse.Namespace,
    shared: Tensor | None = None,
) -> dict[str, Any]:
    """Identify what was planted, and steer both models with it and with the controls.

    `shared` is a direction of the first model that the second is known to have.
    """
    first, second = pair
    assert control.direction is not None
    for source, subject in zip(crosscoder.sources, pair, strict=True):
        source["hookpoint"] = subject.hookpoint
    _, clusters = judge(crosscoder, control, args)
    mine = [cluster for cluster in clusters if cluster.source == 0]
    if not mine:
        return {"found": False}
    latents = [cluster.latents[0] for cluster in mine[: CONTROLS + 1]]

    x = control.activations[0].float()
    length = SIZE * (x - x.mean(0)).norm(dim=1).median()
    planted = length * control.direction
    vectors = [length * F.normalize(v, dim=0) for v in _raw(crosscoder, control, latents)]
    generator = torch.Generator().manual_seed(1)
    randoms = [
        length * F.normalize(torch.randn(x.shape[1], generator=generator), dim=0)
        for _ in range(CONTROLS)
    ]

    original = first.changes(planted)
    effects = {f"latent {latents[0]}, ranked first": first.changes(vectors[0])}
    for latent, vector in zip(latents[1:], vectors[1:], strict=True):
        effects[f"control: latent {latent}"] = first.changes(vector)
    for number, vector in enumerate(randoms):
        effects[f"control: random direction {number}"] = first.changes(vector)

    def stitched(vector: Tensor) -> dict[str, Tensor]:
        mapped = stitching.direction(vector, 0)
        factors = crosscoder.factors
        as_long = vector.norm() * factors[0] / factors[1]
        return {
            "stitched": mapped,
            "stitched, as long": mapped * float(as_long / mapped.norm()),
        }

    result = {
        "found": True,
        "latents": latents,
        "clusters": len(clusters),
        "rank": clusters.index(mine[0]) + 1,
        "cosine_with_planted": float(mine[0].direction @ control.direction),
        "words": _likelier(first, original),
        "in_its_own_model": _likenesses(original, effects),
        "in_the_other_model": _likenesses(
            original, {name: second.changes(v) for name, v in stitched(vectors[0]).items()}
        ),
    }
    if shared is not None:
        mapped = {name: second.changes(v) for name, v in stitched(shared).items()}
        result["shared_in_the_other_model"] = _likenesses(first.changes(shared), mapped)
    return result


def _raw(crosscoder: Crosscoder, control: Control, latents: Sequence[int]) -> list[Tensor]:
    """What each latent writes into the first model where it is strongest."""
    nowhere = torch.zeros(8_192, dtype=torch.long)
    chunks = ([x[:8_192] for x in control.activations], nowhere, nowhere)
    s_max = largest_activations(crosscoder, iter([chunks]), torch.tensor(latents))
    found = [
        Steering.of_latent(crosscoder, latent, 0, float(s))
        for latent, s in zip(latents, s_max, strict=True)
    ]
    return [one.vector * one.scale for one in found]


def _likelier(subject: Subject, changes: Changes) -> list[str]:
    """The words that gain most probability."""
    gained = (changes.probability * changes.change.exp() - changes.probability).mean(0)
    tokens = subject.words[gained.topk(SHOWN_WORDS).indices]
    return [subject.tokenizer.decode([token]).strip() for token in tokens.tolist()]


def _likenesses(original: Changes, others: Mapping[str, Changes]) -> dict[str, dict[str, float]]:
    return {name: asdict(likeness(original, one)) for name, one in others.items()}


def show(result: dict[str, Any]) -> None:
    """Print what was found, and how like the effects are."""
    if not result["found"]:
        print("The filter keeps no latent of the first model: nothing was found.")
        return
    print(
        f"latent {result['latents'][0]}, first of {result['clusters']} clusters; cosine with what "
        f"was planted {result['cosine_with_planted']:.4f}; words that it makes likelier: "
        f"{', '.join(result['words'])}"
    )
    print(f"{'effect':<44}{'correlation':>12}{'size':>12}")
    headings = {
        "in_its_own_model": "as planted, in SmolLM2",
        "in_the_other_model": "as planted, in Gemma",
        "shared_in_the_other_model": "a direction that both have, in Gemma",
    }
    for key, heading in headings.items():
        if key in result:
            print(heading)
            for name, one in result[key].items():
                print(f"  {name:<42}{one['correlation']:>12.3f}{one['size']:>12.3f}")


def stitch(activations: Sequence[Tensor]) -> Stitching:
    """Maps between two sources; the last pairs judge them."""
    fitted = TensorStream([x[:-STITCHING_TEST] for x in activations], seed=0)
    tested = TensorStream([x[-STITCHING_TEST:] for x in activations], seed=1)
    return fit_stitching(fitted, tested)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("runs/demo-data"))
    parser.add_argument("--out", type=Path, default=Path("runs/planted"))
    parser.add_argument("--direction", type=int, default=0, help="which direction to plant")
    parser.add_argument("--num_latents", type=int, default=4_096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--max_steps", type=int, default=600)
    parser.add_argument("--pairs", type=int, default=131_072, help="pairs that the filter looks at")
    args = parser.parse_args()
    keep_freed_memory()
    if not (args.data / "store").exists():
        raise SystemExit(f"'{args.data}' holds no activation store; `make demo` makes one.")
    store = ActivationStore.open(args.data / "store")
    control = plant(store.rows(torch.arange(len(store))), SIZE, args.direction)
    crosscoder, _ = train(control, "rdfc", args, args.out / control.name)
    stitching = stitch([x[-HELD_OUT:] for x in control.activations])
    loaded = [
        load_language_model(str(folder), device="cpu", dtype="float32")
        for folder in (
            args.data / "models" / "smollm2-135m-instruct",
            args.data / "models" / "gemma-3-270m",
        )
    ]
    models, tokenizers = zip(*loaded, strict=True)
    pair = subjects(models, tokenizers, ["layers.15", "layers.9"])
    shared = persona_vectors(
        models[0],
        TRAITS["negative"].persona,
        tokenizer=tokenizers[0],
        hookpoints=["layers.15"],
    ).vectors[0]
    result = investigate(pair, control, crosscoder, stitching, args, shared)
    atomic_write_json(args.out / "planted.json", result)
    show(result)


if __name__ == "__main__":
    main()
