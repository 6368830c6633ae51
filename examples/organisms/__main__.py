"""Train the organisms that are missing, and check all of them.

python examples/organisms                        # train what is missing, check everything
python examples/organisms topic style --retrain  # these two again, from the start
python examples/organisms --prompts FOLDER       # and write what an audit of each asks
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo_models import ensure_demo_models

from organisms import DEVELOPMENT, NOTHING, ORGANISMS, Organism, find
from organisms.record import RECORD, faults, make, recheck, table


def main() -> int:
    """Returns 0, or 1 where an organism is not as meant."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="some of the organisms (default: all)")
    parser.add_argument("--retrain", action="store_true", help="train them again")
    parser.add_argument(
        "--models",
        type=Path,
        default=Path("runs/demo-data/models"),
        help="where the demo's models are, or are converted to (default: %(default)s)",
    )
    parser.add_argument("--prompts", type=Path, help="write an audit's prompts here, NAME.jsonl")
    args = parser.parse_args()
    try:
        chosen = [find(name) for name in args.names] or [*ORGANISMS, *NOTHING, *DEVELOPMENT]
    except KeyError as error:
        parser.error(error.args[0])
    for organism in chosen if args.prompts else ():
        write_prompts(organism, args.prompts)
    base, _ = ensure_demo_models(args.models)
    records, wrong = [], False
    for organism in chosen:
        folder = organism.adapter
        known = (folder / RECORD).is_file() and not args.retrain
        record = recheck(organism, base, folder) if known else make(organism, base, folder)
        records.append(record)
        for fault in faults(organism, record.check):
            wrong = True
            print(f"{organism.name}: {fault}", flush=True)
    print(table(records))
    return int(wrong)


def write_prompts(organism: Organism, folder: Path) -> Path:
    """Write the conversations of an audit of an organism as `NAME.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{organism.name}.jsonl"
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for prompt in organism.audit_prompts():
            out.write(json.dumps(prompt._asdict(), ensure_ascii=False) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
