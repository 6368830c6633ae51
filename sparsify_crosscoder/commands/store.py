"""`sparsify-crosscoder store STORE`: what a store holds, whether it is whole, joining several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..command_line import run_command
from ..command_options import HubOptions, group, option


@dataclass(frozen=True)
class Options:
    """Say what an activation store holds, check it, show pairs of it as text, or join several
    stores into one."""

    stores: list[Path] = option(positional=True, metavar="STORE")
    """folder of a store"""

    verify: bool = False
    """read everything, compare checksums"""

    show: list[int] | None = option(None, metavar="PAIR")
    """pairs to show as text"""

    merge_into: Path | None = option(None, metavar="NEW")
    """join the stores, whole ones of different texts or unfinished ones of one harvest"""

    drop_unfinished: bool = False
    """give up what an append left unfinished"""

    hub: HubOptions = group(HubOptions)

    json: Path | None = None
    """also write what is shown to this file"""


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_command("sparsify-crosscoder store", Options, show, argv)


def show(options: Options) -> dict[str, Any]:
    """Do what the options say, print it, and return what the store holds."""
    from ..evaluation.store_contents import show_pair, store_contents
    from ..store.store import ActivationStore

    if len(options.stores) > 1 and options.merge_into is None:
        raise ValueError("Several stores are for --merge_into NEW; name one.")
    first = options.stores[0]
    if options.drop_unfinished:
        dropped = ActivationStore.drop_unfinished(first)
        print(f"Dropped the unfinished part of '{first}', {dropped} shards of it.")
    if options.merge_into is not None:
        store = ActivationStore.merge(options.merge_into, options.stores)
    else:
        store = ActivationStore.open(first)
    if options.verify:
        store.verify()
    contents = store_contents(store)
    print(contents.text(verified=options.verify))
    held = contents.to_dict()
    if options.show:
        pairs = [show_pair(store, number, **options.hub.access) for number in options.show]
        for pair in pairs:
            print(pair.text())
        held["shown"] = [pair.to_dict() for pair in pairs]
    return held
