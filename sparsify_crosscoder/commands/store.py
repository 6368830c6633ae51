"""`sparsify-crosscoder store STORE`: what a store holds, whether it is whole, joining several."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..command_line import add_hub_options, execute
from ..harvest.model_identity import revision_suffix, source_names
from ..harvest.sources import load_fast_tokenizer
from ..store.store import ActivationStore


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    parser = argparse.ArgumentParser(
        prog="sparsify-crosscoder store",
        description="Say what an activation store holds, check it, show pairs of it as text, or "
        "join several stores into one.",
    )
    parser.add_argument("stores", type=Path, nargs="+", metavar="STORE", help="folder of a store")
    parser.add_argument("--verify", action="store_true", help="read everything, compare checksums")
    parser.add_argument("--show", type=int, nargs="+", metavar="PAIR", help="pairs to show as text")
    parser.add_argument(
        "--merge_into",
        type=Path,
        metavar="NEW",
        help="join the stores, whole ones of different texts or unfinished ones of one harvest",
    )
    parser.add_argument(
        "--drop_unfinished", action="store_true", help="give up what an append left unfinished"
    )
    add_hub_options(parser)
    parser.add_argument("--json", type=Path, help="also write what is shown to this file")
    execute(parser, run, argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Do what the options say, print it, and return what the store holds."""
    if len(args.stores) > 1 and args.merge_into is None:
        raise ValueError("Several stores are for --merge_into NEW; name one.")
    if args.drop_unfinished:
        dropped = ActivationStore.drop_unfinished(args.stores[0])
        print(f"Dropped the unfinished part of '{args.stores[0]}', {dropped} shards of it.")
    if args.merge_into is not None:
        store = ActivationStore.merge(args.merge_into, args.stores)
    else:
        store = ActivationStore.open(args.stores[0])
    if args.verify:
        store.verify()
    held = describe(store)
    print_description(held, verified=args.verify)
    if args.show:
        held["shown"] = [
            show_pair(store, number, args.hf_token, trust_remote_code=args.trust_remote_code)
            for number in args.show
        ]
        for pair in held["shown"]:
            print(
                f"\npair {pair['pair']}  text {pair['text_id']} of {pair['dataset']}, characters "
                f"{pair['characters'][0]} to {pair['characters'][1]}"
            )
            for name, text in pair["contexts"].items():
                print(f"  {name}: {text}")
    return held


def describe(store: ActivationStore) -> dict[str, Any]:
    """What a store holds, as JSON values."""
    return {
        "store": str(store.path),
        "sources": [
            {
                name: source[name]
                for name in ("name", "revision", "hookpoint", "width")
                if source.get(name) is not None
            }
            for source in store.sources
        ],
        "pairs": len(store),
        "texts": len(store.windows.unique("text_id")),
        "dtype": store.dtype,
        "bytes": store.num_bytes,
        "shards": store.num_shards,
        "harvests": [part["origin"] for part in store.manifest["parts"]],
    }


def print_description(held: dict[str, Any], *, verified: bool) -> None:
    """Print what `describe` gives."""
    print(
        f"{held['store']}: {held['pairs']:,} pairs of {held['texts']:,} texts in {held['dtype']}, "
        f"{held['bytes'] / 1e9:,.2f} GB in {held['shards']:,} shards"
        + (", all as they were written" if verified else "")
    )
    for letter, source in zip("ABCDEFGH", held["sources"], strict=False):
        name = source["name"] + revision_suffix(source)
        print(f"  {letter}  {name}  {source['hookpoint']}  width {source['width']}")
    for origin in held["harvests"]:
        if origin is not None:
            print("  from " + ", ".join([origin["dataset"], *origin["extra_datasets"]]))


def show_pair(
    store: ActivationStore,
    number: int,
    token: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Where a pair is from, and the text around it in every model's own tokens."""
    from ..evaluation.top import mark_tokens

    pair = store.pair(number)
    window = store.windows[pair.window]
    return {
        "pair": number,
        "text_id": pair.text_id,
        "dataset": pair.dataset,
        "characters": list(pair.characters),
        "token_ids": pair.token_ids,
        "contexts": {
            f"{letter} {name}": mark_tokens(
                window,
                s,
                {pair.position: 1.0},
                pair.position,
                load_fast_tokenizer(
                    store.sources[s]["name"],
                    revision=store.sources[s].get("revision"),
                    token=token,
                    trust_remote_code=trust_remote_code,
                ),
            )
            for s, (letter, name) in enumerate(
                zip("ABCDEFGH", source_names(store.sources), strict=False)
            )
        },
    }
