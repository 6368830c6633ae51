"""The table of all latents: what the crosscoder, the text, the judge and the filter say of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify_crosscoder.files import atomic_path

if TYPE_CHECKING:
    from pyarrow import Schema, Table

    from sparsify_crosscoder.crosscoders import Crosscoder
    from sparsify_crosscoder.evaluation.filter import FilterRecord
    from sparsify_crosscoder.evaluation.latent_card import LatentCard

    from .autointerp import Autointerp

COLUMNS: dict[str, tuple[str, str]] = {
    "latent": ("int64", "index in the crosscoder"),
    "name": ("string", "delphi's name, as in the names of files"),
    "partition": ("string", "block of the dictionary"),
    "source": ("int64", "source that equation 12 calls it exclusive to; none if shared"),
    "relative_decoder_norm": ("float64", "share of source 0 in its decoder norms (equation 1)"),
    "firings": ("int64", "pairs of the cached text on which it fires"),
    "frequency": ("float64", "the same per token of the cached text"),
    "dead": ("bool", "it never fires"),
    "s_max": ("float64", "largest activation, in normalised units (B.5)"),
    "fires_on": ("string", "words that it is strongest at, and in how many of its passages"),
    "characteristic_words": (
        "string",
        "words around these that stand out against the corpus (log-odds with a Dirichlet prior), "
        "and in how many of its passages",
    ),
    "promoted_0": ("string", "tokens that its direction makes likelier in source 0 (logit lens)"),
    "suppressed_0": ("string", "tokens that it makes less likely in source 0"),
    "promoted_1": ("string", "tokens that its direction makes likelier in source 1 (logit lens)"),
    "suppressed_1": ("string", "tokens that it makes less likely in source 1"),
    "explanation": ("string", "the judge's; none if it gave none"),
    "flag_status": ("string", "ok, unparsable or failed; none if the judge was not asked"),
    "harmful": ("bool", "whether it matters for an audit (B.4.2)"),
    "reason": ("string", "the judge's reason for that"),
    "category": ("string", "of those that matter (Tables 9 and 10)"),
    "detection_score": ("float64", "share of examples that the judge told apart (B.4.4)"),
    "detection_held_out": (
        "float64",
        "the same with passages of ranks 11 to 20, which the explanation was not written from",
    ),
    "detection_quantiles": ("float64", "the same with ten of all weaker ones"),
    "interpretable": (
        "bool",
        "whether detection_score reaches the threshold; none if not scorable",
    ),
    "not_scorable": ("string", "why there is no detection score"),
    "unanswered": ("int64", "examples of the detection test without an answer"),
    "filter_verdict": ("string", "what the false-exclusive filter says; none if it was not judged"),
    "filter_reason": ("string", "what that means, or why it cannot be judged"),
    "filter_score": ("float64", "how exclusive the difference is, whatever the verdict"),
    "filter_score_error": ("float64", "one standard error of that"),
    "filter_score_low": ("float64", "lower end of its 95% interval"),
    "filter_score_high": ("float64", "upper end of it"),
    "pairs_present": ("int64", "pairs that the filter or the list read on which it fires"),
    "pairs_read": ("int64", "pairs that it read"),
    "presence_error": (
        "float64",
        "one standard error of the share of the former in the latter, over folds of whole texts",
    ),
    "scaling_error_ratio": (
        "float64",
        "what the other model's reconstruction error has of it, as a multiple of its own (latent "
        "scaling, Minder et al. 2025)",
    ),
    "scaling_error_low": ("float64", "lower end of its 95% interval"),
    "scaling_error_high": ("float64", "upper end of it"),
    "scaling_reconstruction_ratio": ("float64", "the same of the other model's reconstruction"),
    "scaling_reconstruction_low": ("float64", "lower end of its 95% interval"),
    "scaling_reconstruction_high": ("float64", "upper end of it"),
    "cluster": ("int64", "rank of the cluster of copies that it is in; none unless kept"),
    "listed": ("bool", "whether it is in the list of differences; none if there was no list"),
    "difference": ("int64", "rank in the list of differences of what it shows; none if not in it"),
    "difference_kind": ("string", "exclusive, shared, difference, mean or map: what that is"),
    "difference_score": ("float64", "the score by which the list is ranked"),
    "q_value": ("float64", "share of the list down to there that is false by the nulls"),
    "q_low": ("float64", "lower end of its 95% interval"),
    "q_high": ("float64", "upper end of it"),
    "found_by_runs": ("int64", "of the runs that were compared, those that find what it shows"),
    "compared_runs": ("int64", "runs that were compared; none if it is in no cluster"),
    "verified": (
        "bool",
        "whether what it shows was found to cause what its model answers otherwise; none if that "
        "was not tested",
    ),
    "verification": ("string", "what was found of that"),
    "exclusivity": ("float64", "1 to 5: how little of its effect a linear map carries over (B.5)"),
    "exclusivity_spread": ("float64", "standard deviation of that over the prompts"),
    "exclusivity_blinded": ("float64", "the same, the judge not told which model is which"),
    "steering_interpretability": ("float64", "1 to 5: how clear its effect on its own model is"),
    "exclusivity_status": ("string", "scored, not_interpretable or unanswered; none if not asked"),
    "likeness": (
        "float64",
        "-1 to 1, without a judge: correlation of what steering does to the next words of its own "
        "model with what its stitched image does to the other's; 1 is shared",
    ),
    "likeness_spread": ("float64", "standard deviation of that over the prompts"),
    "effect": ("float64", "change of its own model's next token by that steering (KL, nats)"),
    "effect_p": (
        "float64",
        "chance of so large an effect among random directions as long, or with a judge of so clear "
        "a one: (1 + those at least as large) / (1 + all)",
    ),
    "equivalence": (
        "float64",
        "-1 to 1: correlation of what ablating it does to the next words of both models at the "
        "same pairs; none unless it is shared and was ablated",
    ),
    "equivalence_low": ("float64", "lower end of its 95% interval, by text"),
    "equivalence_high": ("float64", "upper end of it"),
    "equivalence_null": (
        "float64",
        "the same where as much of another latent's direction is taken from the second model",
    ),
    "equivalence_gap": ("float64", "by how much the correlation is larger than that"),
    "equivalence_gap_low": (
        "float64",
        "lower end of its 95% interval: above 0, it does the same in both models",
    ),
    "decoder_cosine": (
        "float64",
        "cosine of its decoders in both models, by the map where they share no basis",
    ),
    "sampled": (
        "string",
        "why its exclusivity was looked at: flagged, a listed difference is named by it, kept by "
        "the filter, or one of a sample",
    ),
}
"""Columns of features.parquet: type and meaning, which the file also has."""


def features(
    autointerp: Autointerp,
    crosscoder: Crosscoder,
    filtered: FilterRecord | None = None,
    exclusivity: Mapping[int, Mapping[str, Any]] | None = None,
    described: Mapping[int, Mapping[str, str | None]] | None = None,
    cards: Sequence[LatentCard] | None = None,
) -> Table:
    """One row per latent, in order.

    `exclusivity` has, by latent, values of the columns from "exclusivity" on, `described` those
    that `descriptions.table_columns` gives. `cards` are all latents', those by the filter if left
    out.
    """
    import pyarrow as pa

    from sparsify_crosscoder.evaluation.latent_cards import cards_of

    from . import flagging
    from .autointerp import Scored
    from .categories import load_categories

    statistics = autointerp.cache.statistics
    flags = flagging.load_flags(autointerp.folder)
    scored = Scored.load(autointerp.scores)
    categories = load_categories(autointerp.folder)
    tokens = autointerp.cache.writer.num_tokens
    judged = {} if filtered is None else filtered.latents
    clusters = {
        latent: rank
        for rank, cluster in enumerate([] if filtered is None else filtered.clusters, 1)
        for latent in cluster
    }
    cards = cards_of(crosscoder, filtered) if cards is None else cards
    rows = []
    for block in crosscoder.partition.blocks:
        for latent in range(block.start, block.stop):
            name = autointerp.name(latent)
            flag, decision = flags.get(name), scored.decisions.get(name)
            held = scored.held_out.get(name)
            category, verdict = categories.get(name), judged.get(latent)
            rows.append(
                {
                    **vars(cards[latent]),
                    "name": name,
                    "partition": block.name,
                    "firings": int(statistics.firings[latent]),
                    "frequency": int(statistics.firings[latent]) / tokens,
                    "dead": bool(statistics.dead[latent]),
                    "s_max": float(statistics.max_activation[latent]),
                    **(described or {}).get(latent, {}),
                    "explanation": flag and flagging.load_explanation(autointerp.folder, name),
                    "flag_status": flag and flag.status,
                    "harmful": flag and flag.harmful,
                    "reason": flag and flag.reason,
                    "category": category and category.category,
                    "detection_score": decision and decision.score,
                    "detection_held_out": held and held.next_ranks,
                    "detection_quantiles": held and held.quantiles,
                    "interpretable": decision and decision.interpretable,
                    "not_scorable": decision and decision.not_scorable,
                    "unanswered": decision and decision.n_unanswered,
                    "filter_score_error": verdict and verdict.measured.get("score_error"),
                    "cluster": clusters.get(latent),
                    **(exclusivity or {}).get(latent, {}),
                }
            )
    return pa.Table.from_pylist(rows, schema=schema())


def read_card(path: Path, latent: int) -> LatentCard:
    """A latent's card from a table that `write_features` wrote, of an earlier version too.

    Raises FileNotFoundError where there is no table, ValueError for a latent that is not in it.
    """
    import pyarrow.parquet as pq

    from sparsify_crosscoder.evaluation.latent_card import LatentCard

    if not path.exists():
        raise FileNotFoundError(f"There is no table of latents: '{path}'.")
    rows = pq.read_table(path, filters=[("latent", "=", latent)]).to_pylist()
    if not rows:
        raise ValueError(f"There is no latent {latent} in '{path}'.")
    return LatentCard.of(rows[0])


def schema() -> Schema:
    """Of the table; every column has its meaning as metadata."""
    import pyarrow as pa

    return pa.schema(
        pa.field(column, pa.type_for_alias(kind), metadata={"meaning": meaning})
        for column, (kind, meaning) in COLUMNS.items()
    )


def write_features(table: Table, path: Path) -> None:
    """Write the table, whole or not at all."""
    import pyarrow.parquet as pq

    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
