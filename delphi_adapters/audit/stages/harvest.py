"""Activations of both models, in a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsify_crosscoder.hashing import hash_file

from ..outcome import Cost, Outcome
from ..runner import Record
from ..stage import Context, NoOptions, Stage

OF_HARVEST = (
    *("model", "partners", "dataset", "split", "data_args", "text_column", "extra_datasets"),
    *("dataset_weights", "max_examples", "shuffle_seed", "ctx_len", "chat_format", "pairs"),
    *("exclude_tokens", "hookpoints", "layers", "revision", "load_in_8bit", "model_dtype"),
    *("dtype", "shard_pairs", "batch_size"),
)
"""Options of training that change a store."""
LATER_OPTIONS: dict[str, Any] = {
    **{"answers": "none", "answer_tokens": 256, "answer_seed": 0},
    **{"template_tokens": False, "chat_template_from": "own"},
}
"""Those that an earlier version did not have, which is what their defaults stand for."""


class Harvest(Stage[NoOptions, Path]):
    """Fills the store, unless one was given or a run is trained already; gives its place."""

    name = "harvest"
    what = "activations of both models at the tokens that they have in common"

    def inputs(self, ctx: Context) -> dict[str, Any]:
        from sparsify_crosscoder.harvest.adapter_name import is_local
        from sparsify_crosscoder.store.manifest import read_manifest

        if ctx.config.run is not None:
            return {"run": str(ctx.run.path)}
        options = ctx.training.to_dict()
        inputs = {name: options[name] for name in OF_HARVEST}
        later = {name: options[name] for name in LATER_OPTIONS}
        inputs |= {name: value for name, value in later.items() if value != LATER_OPTIONS[name]}
        if options["partner_revisions"]:
            inputs["partner_revisions"] = options["partner_revisions"]
        if options["kl"] != "auto":
            inputs["kl"] = options["kl"]
        manifest = read_manifest(store_place(ctx))
        folders = [name for name in ctx.config.models if is_local(name)]
        # Of a hub's model nothing is known before it is here; earlier versions kept no digests.
        if folders and (manifest is None or "checkpoint" in manifest["sources"][0]):
            from sparsify_crosscoder.harvest.model_identity import checkpoint_digest

            inputs["checkpoints"] = [checkpoint_digest(name) for name in folders]
        return inputs

    def estimate(self, ctx: Context) -> Cost:
        from sparsify_crosscoder.harvest.answering import ROWS
        from sparsify_crosscoder.store.dtypes import get_dtype
        from sparsify_crosscoder.store.manifest import is_store

        if ctx.config.run is not None:
            return Cost()
        pairs, quantities = num_pairs(ctx), ctx.quantities
        if is_store(ctx.training.dataset):
            return Cost(0.0, {"pairs": pairs})
        size = sum(map(get_dtype(ctx.training.dtype).row_bytes, quantities.widths)) * pairs
        to_end = quantities.to_the_end
        operations = sum(2 * (m.whole if to_end else m.read) for m in quantities.models) * pairs
        counts = {"pairs": pairs, "gigabytes": size / 1e9}
        if ctx.training.answers == "none":
            return Cost(quantities.seconds(operations), counts)
        tokens = quantities.tokens_to_answer()
        # Half of them by each model, which is read once for all rows of a batch.
        seconds = quantities.writing(tokens // 2, tokens / 2 / ROWS)
        counts |= {"tokens to write": tokens}
        return Cost(seconds + quantities.seconds(operations), counts)

    def run(self, ctx: Context, folder: Path) -> Outcome:
        from sparsify_crosscoder.runs.pairs import harvest_run
        from sparsify_crosscoder.store.manifest import is_store
        from sparsify_crosscoder.store.store import ActivationStore

        if ctx.config.run is not None:
            run = str(ctx.run.path)
            return Outcome({"given": run}, identity={"run": run})
        options, outputs = ctx.training, []
        if is_store(options.dataset):
            store = ActivationStore.open(options.dataset)
            result: dict[str, Any] = {"given": str(store_place(ctx)), "pairs": len(store)}
        else:
            if options.answers != "none":
                print(
                    f"The prompts of '{options.dataset}' are answered by the models (--answers "
                    f"{options.answers}); with --answers none its texts stay as they are."
                )
            result = harvest_run(options, ctx.device).to_dict()
            store = ActivationStore.open(store_place(ctx))
            outputs = store.files()
        result["bytes"] = store.num_bytes
        # The manifest has every shard's checksum.
        return Outcome(result, outputs, identity=hash_file(store.path / "manifest.json"))

    def output(self, ctx: Context, folder: Path, record: Record) -> Path:
        return store_place(ctx)


def store_place(ctx: Context) -> Path:
    """The store that is trained from: the audit's own, or the one given for a dataset."""
    return Path(ctx.training.cache or ctx.training.dataset).resolve()


def num_pairs(ctx: Context) -> int:
    """Pairs of the text: known from a run or a store, or told from a sample of the texts."""
    from sparsify_crosscoder.store.manifest import is_store
    from sparsify_crosscoder.store.store import ActivationStore

    if ctx.config.run is not None:
        return ctx.run.summary().pairs
    options = ctx.training
    place = options.dataset if is_store(options.dataset) else options.cache
    if place is not None and is_store(place):
        return len(ActivationStore.open(place))
    return ctx.quantities.pairs_of_texts() if options.pairs is None else options.pairs
