"""What activation stores cost: to harvest, to read, and in what is trained on fewer bits.

    python examples/benchmarks/harvest.py           half an hour
    python examples/benchmarks/harvest.py --quick   far fewer pairs, under two minutes
    python examples/benchmarks/harvest.py --only forwards   beside public code alone, minutes

On the models and the text that `make demo` leaves (`--data`): SmolLM2-135M-Instruct at layers.15
and Gemma 3 270M at layers.9, windows of at most 256 tokens that are aligned already, 16 in a batch:

harvest          `ActivationStore.create` into an empty folder: batches, forward passes that stop at
                 the hookpoint, activations at the pairs, shards on the disk with their checksums
forwards alone   the same batches, ready as tensors, through models of which only the layers up to
                 the hookpoint are there; nothing is read or kept
full forwards    what most public code does: whole causal language models, one after the other,
                 windows in the order of the texts, padded to the longest of their batch, a forward
                 hook that keeps the layer's output; pairs end up in memory, not on a disk

With `--only forwards` there are two more, on the models without their heads, sorted by length, and
all are in one thread:

hook, stopped      a forward hook at the layer ends the forward, as careful public code does
nnsight, stopped   an nnsight trace that saves the layer's output and stops there

There a harvest's rate is that of its batches; what a store costs once, however long the harvest
(windows written, checksums, manifest), is told in seconds beside it, and so are loading and
tokenising. A harvest with two workers then takes turns with one with one worker.

Ways take turns in one process; a rate is the median over the rounds, a ratio the median of the
rounds' ratios. The CPU's time says more where other programs run, but has no waiting for the disk.
With one thread (the default) models take turns; with more (`--threads`) the first two ways run them
side by side, the cores divided among them.

For the other two parts, windows from the same texts are harvested once, in float32 by models in
float32, and these pairs are written again in every dtype.

reading   shuffled batches of 512 from a store that holds the pairs four times over, both ways in
          which `StoreStream` shuffles, from a store just opened (every block's checksum is tested)
          and in the epoch after; beside reading the same files from beginning to end, and beside
          the demo's training on pairs in memory
dtypes    bytes, error of what is stored, and what the demo's DFC loses in held-out FVE when it is
          trained on it: the same weights at the beginning, the same pairs in the same order, and
          all are evaluated on the float32 activations

The script ends with exit code 1 if a claim in `AT_LEAST` or `AT_MOST` does not hold. With `--quick`
some are no claims: what a store costs once is much of so short a harvest, and a few steps of a
small crosscoder say nothing of FVE.
"""

from __future__ import annotations

import argparse
import gc
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from machine import processor
from rates import Rates, Timed, add, ratio, timed
from step_report import table
from stopped_forwards import by_hook, by_nnsight
from store_dtypes import EXACT, dtypes_tables, encode_again, measure_dtypes
from store_reading import measure_reading, reading_table
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.hardware import has_native_bfloat16, pick_device
from sparsify_crosscoder.harvest.harvest import run_harvest
from sparsify_crosscoder.harvest.hookpoints import layer_list
from sparsify_crosscoder.harvest.placement import Placement
from sparsify_crosscoder.harvest.source import Source
from sparsify_crosscoder.harvest.sources import load_language_model, load_sources
from sparsify_crosscoder.store.store import ActivationStore
from sparsify_crosscoder.text.texts import load_texts
from sparsify_crosscoder.text.window_numbers import window_numbers
from sparsify_crosscoder.text.windows import prepare_windows
from sparsify_crosscoder.training.allocator import keep_freed_memory

MODELS = ("smollm2-135m-instruct", "gemma-3-270m")
HOOKPOINTS = ("layers.15", "layers.9")
CTX_LEN, BATCH_SIZE = 256, 16
HARVEST, ALONE, FULL = "harvest", "forwards alone", "full forwards"
HOOK, NNSIGHT = "hook, stopped", "nnsight, stopped"


class Sizes(NamedTuple):
    """How much is measured."""

    pairs: int = 20_000
    """Harvested in every round."""

    rounds: int = 5
    stored_pairs: int = 60_000
    """In the store that is read and trained on."""

    copies: int = 4
    """Of them, in the store that is read."""

    reading_rounds: int = 3
    steps: int = 1000
    """Of training on every dtype."""

    seeds: tuple[int, ...] = (0, 1, 2)
    held_out_pairs: int = 8192
    num_latents: int = 8192
    forward_pairs: int = 3_000
    """Harvested in every round with `--only forwards`."""

    forward_rounds: int = 3


QUICK = Sizes(4_000, 2, 3_000, 4, 1, 20, (0,), 500, 1024, 500, 2)
AT_LEAST = {
    "harvest to forwards alone": 0.9,
    "harvest to full forwards": 1.6,
    "cosine with full forwards": 0.999,
    "reading to training": 5.0,
    "harvest to nnsight, stopped": 1.2,
    "two workers to one": 1.8,
}
AT_MOST = {
    "int8's cost in held-out FVE": 0.002,
    "int8's bytes to bfloat16's": 0.51,
}
NOT_WITH_QUICK = {
    "harvest to forwards alone",
    "harvest to nnsight, stopped",
    "two workers to one",
    "int8's cost in held-out FVE",
}

Inputs = dict[str, Tensor]


# What is harvested


def demo_sources(
    data: Path, device: torch.device, dtype: str, models: Path | None = None
) -> list[Source]:
    """The demo's two models, read where it reads them."""
    names = [str((models or data / "models") / name) for name in MODELS]
    return load_sources(names, hookpoints=HOOKPOINTS, placement=Placement(device), dtype=dtype)


def first_windows(texts: Path, sources: Sequence[Source], num_pairs: int) -> Dataset:
    """Aligned windows from the beginning of the texts: as many as bring `num_pairs` pairs."""
    windows = prepare_windows(
        load_texts(str(texts), max_examples=440), [s.tokenizer for s in sources], ctx_len=CTX_LEN
    )
    ends = torch.from_numpy(window_numbers(windows, "num_pairs")).cumsum(0)
    return windows.select(range(int((ends < num_pairs).sum()) + 1))


# The ways


def full_forwards(
    model: Any, hookpoint: str, windows: Dataset, source: int, batch_size: int
) -> Tensor:
    """Activations [pairs, D] by a hook on a whole model that reads the windows as they come."""
    kept: list[Tensor] = []
    handle = model.base_model.get_submodule(hookpoint).register_forward_hook(
        lambda module, args, output: kept.append(output[0] if type(output) is tuple else output)
    )
    found = []
    with torch.inference_mode():
        for batch in windows.iter(batch_size):
            ids = [torch.tensor(row) for row in batch[f"input_ids_{source}"]]
            mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
            inputs = pad_sequence(ids, batch_first=True).to(model.device)
            model(input_ids=inputs, attention_mask=mask.to(model.device))
            hidden = kept.pop()
            found += [hidden[i, pairs] for i, pairs in enumerate(batch[f"pairs_{source}"])]
    handle.remove()
    return torch.cat(found)


def recorded_batches(
    sources: Sequence[Source], windows: Dataset, batch_size: int
) -> list[list[Inputs]]:
    """What a harvest hands to each source's model."""
    found: list[list[Inputs]] = [[] for _ in sources]
    with ExitStack() as stack:
        for source, batches in zip(sources, found, strict=True):
            handle = source.model.register_forward_pre_hook(
                lambda module, args, kwargs, batches=batches: batches.append(kwargs),
                with_kwargs=True,
            )
            stack.callback(handle.remove)
        run_harvest(sources, windows, range(len(windows)), batch_size=batch_size)
    return found


@contextmanager
def cut_behind(source: Source) -> Iterator[None]:
    """Inside, the source's model ends with the layer of its hookpoint, without its last norm."""
    model: Any = source.model
    path, _ = layer_list(model)
    layers, norm = model.get_submodule(path), model.norm
    last = int(source.hookpoint.removeprefix(f"{path}."))
    model.layers, model.norm = nn.ModuleList(list(layers)[: last + 1]), nn.Identity()
    try:
        yield
    finally:
        model.layers, model.norm = layers, norm


def forwards_alone(sources: Sequence[Source], batches: Sequence[Sequence[Inputs]]) -> None:
    """Run each source's model on its batches, side by side if there are threads enough."""

    @torch.inference_mode()
    def run(number: int) -> None:
        for inputs in batches[number]:
            sources[number].model(**inputs)

    cores, numbers = torch.get_num_threads(), range(len(sources))
    with ExitStack() as stack:
        for source in sources:
            stack.enter_context(cut_behind(source))
        if cores < len(sources):
            list(map(run, numbers))
            return
        threads = (cores // len(sources),)
        try:
            with ThreadPoolExecutor(
                len(sources), initializer=torch.set_num_threads, initargs=threads
            ) as pool:
                list(pool.map(run, numbers))
        finally:
            torch.set_num_threads(cores)


# Measuring


def in_turns(
    ways: Mapping[str, Callable[[], object]], rounds: int, pairs: int
) -> tuple[Rates, Rates]:
    """Pairs per second of each way in each round, on the clock and in the CPU's time."""
    rates: Rates = {}
    cpu_rates: Rates = {}
    for number in range(rounds):
        for way, run in ways.items():
            add(rates, cpu_rates, way, timed(run, pairs))
            print(f"round {number + 1}, {way}: {rates[way][-1]:,.0f}/s", file=sys.stderr)
    return rates, cpu_rates


def measure_harvest(
    sources: Sequence[Source],
    whole_models: Sequence[Any],
    windows: Dataset,
    folder: Path,
    *,
    rounds: int,
    batch_size: int = BATCH_SIZE,
) -> dict[str, Any]:
    """Rates of the three ways on the same windows, and how alike their activations are."""
    batches = recorded_batches(sources, windows, batch_size)
    store = folder / "store"
    found: list[Tensor] = []

    def harvest() -> None:
        shutil.rmtree(store, ignore_errors=True)
        ActivationStore.create(store, sources, windows, batch_size=batch_size)

    def full() -> None:
        found[:] = [
            full_forwards(model, source.hookpoint, windows, s, batch_size)
            for s, (model, source) in enumerate(zip(whole_models, sources, strict=True))
        ]

    ways = {HARVEST: harvest, ALONE: lambda: forwards_alone(sources, batches), FULL: full}
    pairs = int(window_numbers(windows, "num_pairs").sum())
    rates, cpu_rates = in_turns(ways, rounds, pairs)
    stored = ActivationStore.open(store).rows(torch.arange(pairs))
    cosines = [
        nn.functional.cosine_similarity(a.float(), b.cpu().float())
        for a, b in zip(stored, found, strict=True)
    ]
    return {
        "pairs": pairs,
        "windows": len(windows),
        "rates": rates,
        "cpu_rates": cpu_rates,
        "padded": padding(sources, windows, batches, batch_size),
        "found": {
            "harvest to forwards alone": ratio(rates, HARVEST, ALONE),
            "harvest to full forwards": ratio(rates, HARVEST, FULL),
            "cosine with full forwards": min(float(cosine.median()) for cosine in cosines),
        },
    }


def padding(
    sources: Sequence[Source],
    windows: Dataset,
    batches: Sequence[Sequence[Inputs]],
    batch_size: int,
) -> dict[str, list[float]]:
    """Tokens of padding for each token of text, by model: in a harvest, and as windows come."""
    lengths = [[len(row) for row in windows[f"input_ids_{s}"][:]] for s in range(len(sources))]

    def cut(own: Sequence[int]) -> float:
        starts = range(0, len(own), batch_size)
        chunks = [own[i : i + batch_size] for i in starts]
        return sum(max(chunk) * len(chunk) for chunk in chunks) / sum(own) - 1

    in_order = [cut(sorted(own)) for own in lengths]
    return {
        HARVEST: [
            sum(one["input_ids"].numel() for one in some) / sum(own) - 1
            for some, own in zip(batches, lengths, strict=True)
        ],
        HOOK: in_order,
        NNSIGHT: in_order,
        FULL: [cut(own) for own in lengths],
    }


def measure_forwards(
    sources: Sequence[Source],
    whole_models: Sequence[Any],
    windows: Dataset,
    folder: Path,
    *,
    rounds: int,
    batch_size: int = BATCH_SIZE,
) -> dict[str, Any]:
    """Rates of a harvest's batches, and of all other ways, one worker each; then of two workers."""
    batches = recorded_batches(sources, windows, batch_size)
    numbered = list(enumerate(sources))
    traced = [by_nnsight(one.model, one.hookpoint, windows, s, batch_size) for s, one in numbered]
    pairs = int(window_numbers(windows, "num_pairs").sum())
    rates: Rates = {}
    cpu_rates: Rates = {}
    fixed: list[float] = []

    def into_a_store() -> Timed:
        shutil.rmtree(folder / "store", ignore_errors=True)
        took = timed(lambda: stores.append(create(folder / "store")), pairs)
        seconds = stores.pop().report.seconds
        fixed.append(took.seconds - seconds)
        return Timed(pairs, seconds, took.cpu_seconds)

    def create(store: Path) -> ActivationStore:
        return ActivationStore.create(store, sources, windows, batch_size=batch_size)

    stores: list[ActivationStore] = []
    ways: dict[str, Callable[[], object]] = {
        ALONE: lambda: forwards_alone(sources, batches),
        HOOK: lambda: [by_hook(x.model, x.hookpoint, windows, s, batch_size) for s, x in numbered],
        NNSIGHT: lambda: [run() for run in traced],
        FULL: lambda: [
            full_forwards(model, one.hookpoint, windows, s, batch_size)
            for model, (s, one) in zip(whole_models, numbered, strict=True)
        ],
    }
    before = torch.get_num_threads()
    workers: Rates = {"1": [], "2": []}
    try:
        for number in range(rounds):
            torch.set_num_threads(1)
            add(rates, cpu_rates, HARVEST, into_a_store())
            for way, run in ways.items():
                add(rates, cpu_rates, way, timed(run, pairs))
            for count, found in workers.items():
                torch.set_num_threads(int(count))
                harvest = run_harvest(sources, windows, range(len(windows)), batch_size=batch_size)
                found.append(pairs / harvest.report.seconds)
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
    finally:
        torch.set_num_threads(before)
    return {
        "pairs": pairs,
        "windows": len(windows),
        "rates": rates,
        "cpu_rates": cpu_rates,
        "padded": padding(sources, windows, batches, batch_size),
        "workers": workers,
        "fixed_seconds": {"store": median(fixed)},
        "found": {
            "harvest to forwards alone": ratio(rates, HARVEST, ALONE),
            "harvest to full forwards": ratio(rates, HARVEST, FULL),
            "harvest to nnsight, stopped": ratio(rates, HARVEST, NNSIGHT),
            "two workers to one": ratio(workers, "2", "1"),
        },
    }


def measure_store(
    data: Path, folder: Path, sizes: Sizes, *, device: torch.device, models: Path | None = None
) -> dict[str, dict[str, Any]]:
    """The parts on reading and on dtypes, from one harvest in float32."""
    sources = demo_sources(data, device, EXACT, models)
    windows = first_windows(data / "texts.jsonl", sources, sizes.stored_pairs)
    exact = ActivationStore.create(
        folder / EXACT, sources, windows, batch_size=BATCH_SIZE, dtype=EXACT
    )
    del sources
    gc.collect()
    keep_freed_memory()  # as the training command does
    larger = folder / "larger"
    stores = {
        dtype: encode_again(exact, larger / dtype, dtype, copies=sizes.copies)
        for dtype in ("bfloat16", "int8")
    }
    reading = measure_reading(stores, folder, rounds=sizes.reading_rounds, device=device)
    del stores
    shutil.rmtree(larger)
    dtypes = measure_dtypes(
        exact,
        folder,
        steps=sizes.steps,
        seeds=sizes.seeds,
        held_out_pairs=sizes.held_out_pairs,
        device=device,
        num_latents=sizes.num_latents,
    )
    return {"reading": reading, "dtypes": dtypes}


# Report


def judge(parts: Mapping[str, Mapping[str, Any]], quick: bool = False) -> list[dict[str, Any]]:
    """What the measured parts have found for every claim that is made of them."""
    found = {claim: value for part in parts.values() for claim, value in part["found"].items()}
    judged = []
    for bound, claims in (("at least", AT_LEAST), ("at most", AT_MOST)):
        for claim, value in claims.items():
            if claim not in found or (quick and claim in NOT_WITH_QUICK):
                continue
            holds = found[claim] >= value if bound == "at least" else found[claim] <= value
            judged.append(
                {"claim": claim, "bound": f"{bound} {value:g}", "found": found[claim]}
                | {"holds": holds}
            )
    return judged


def harvest_table(measured: Mapping[str, Any]) -> list[str]:
    """What `measure_harvest` found."""
    rates, cpu_rates, padded = (measured[key] for key in ("rates", "cpu_rates", "padded"))
    rows = [
        [
            way,
            f"{median(rates[way]):,.0f}",
            f"{ratio(rates, way, FULL):.2f}x",
            f"{median(cpu_rates[way]):,.0f}",
            f"{ratio(cpu_rates, way, FULL):.2f}x",
            ", ".join(f"{share:.0%}" for share in padded.get(way, padded[HARVEST])),
        ]
        for way in rates
    ]
    head = ["", "pairs/s", "to full", "pairs/CPU s", "to full", "padding, by model"]
    size = f"{measured['pairs']:,} pairs in {measured['windows']:,} windows"
    lines = [f"{size}, {len(rates[HARVEST])} rounds:", "", *table(head, rows)]
    if "workers" in measured:
        found = {count: median(of) for count, of in measured["workers"].items()}
        lines += ["", *(f"{count} worker(s): {rate:,.0f} pairs/s" for count, rate in found.items())]
        costs = ", ".join(f"{k} {v:.2f}" for k, v in measured["fixed_seconds"].items())
        lines += [f"Once, whatever the number of pairs, in seconds: {costs}."]
    return lines


def show(report: Mapping[str, Any]) -> str:
    """The report as tables."""
    tables = {
        "harvest": harvest_table,
        "forwards": harvest_table,
        "reading": reading_table,
        "dtypes": dtypes_tables,
    }
    instructions = "".join(f", {fact}" for fact in report.get("instructions", ()))
    lines = [
        f"{report['processor']}, torch {report['versions']['torch']}, {report['dtype']}, "
        f"{report['threads']} thread(s){instructions}.",
        "",
    ]
    for part, measured in report["parts"].items():
        lines += [*tables[part](measured), ""]
    cells = [
        [c["claim"], c["bound"], f"{c['found']:.4g}", "pass" if c["holds"] else "FAIL"]
        for c in report["claims"]
    ]
    return "\n".join([*lines, *table(["claim", "", "found", ""], cells)])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("runs/demo-data"))
    parser.add_argument("--quick", action="store_true", help="under two minutes")
    parser.add_argument("--only", choices=["forwards"], help="harvest beside public code alone")
    parser.add_argument("--models", type=Path, help="folder of the two models (DATA/models)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default="auto", help="of the models; auto as in training")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    args = parser.parse_args()
    if not (args.data / "texts.jsonl").exists():
        raise SystemExit(f"'{args.data}' holds no models and texts; `make demo` leaves some.")
    torch.set_num_threads(args.threads)
    device = torch.device(args.device) if args.device else pick_device()
    sizes = QUICK if args.quick else Sizes()

    begun = perf_counter()
    sources = demo_sources(args.data, device, args.dtype, args.models)
    loaded = perf_counter()
    num_pairs = sizes.forward_pairs if args.only else sizes.pairs
    windows = first_windows(args.data / "texts.jsonl", sources, num_pairs)
    tokenised = perf_counter()
    dtype = str(sources[0].model.dtype).removeprefix("torch.")
    whole = [load_language_model(s.name, device=device, dtype=dtype)[0] for s in sources]
    with TemporaryDirectory() as name:
        folder = Path(name)
        if args.only:
            measured = measure_forwards(
                sources, whole, windows, folder, rounds=sizes.forward_rounds
            )
            measured["fixed_seconds"] |= {
                "loading": loaded - begun,
                "tokenising": tokenised - loaded,
            }
            parts = {"forwards": measured}
        else:
            rounds = sizes.rounds
            parts = {"harvest": measure_harvest(sources, whole, windows, folder, rounds=rounds)}
        del sources, whole
        gc.collect()
        if not args.only:
            parts |= measure_store(args.data, folder, sizes, device=device, models=args.models)
    names = ("sparsify-crosscoder", "torch", "transformers", "datasets")
    report = {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "versions": {"python": platform.python_version(), **{n: version(n) for n in names}},
        "threads": args.threads,
        "dtype": dtype,
        "instructions": [
            torch.backends.cpu.get_cpu_capability(),
            f"bfloat16 {'native' if has_native_bfloat16('cpu') else 'emulated'}",
        ],
        "parts": parts,
        "claims": judge(parts, args.quick),
    }
    if args.json is not None:
        atomic_write_json(args.json, report)
    print(show(report))
    return int(not all(claim["holds"] for claim in report["claims"]))


if __name__ == "__main__":
    sys.exit(main())
