"""The run's options, and the command `sparsify MODEL_A DATASET --arch dfc --partners MODEL_B`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field, make_dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from simple_parsing import ArgumentParser, list_field
from sparsify.__main__ import RunConfig as SparsifyRunConfig

from .config import CrosscoderTrainConfig
from .crosscoders.checkpoints import CONFIG
from .endings import WRONG_USE, UsageError, ending, prepare, take_debug, unknown_options
from .evaluation.scorability import FILTER_PAIRS, MIN_FIRINGS
from .files import atomic_write_json
from .hardware import pick_device
from .harvest.model_identity import source_names
from .harvest.placement import DEVICE_MAPS
from .records import check, read_json, reading
from .registry import Architecture, ArchitectureError, architecture_names, get_architecture
from .runs.artifacts import harvest_run
from .runs.provenance import is_begun
from .store.manifest import is_store, read_manifest
from .store.models import check_store_models
from .surroundings import command_surroundings
from .training.allocator import keep_freed_memory
from .training.run_folder import RunFolder

_TRAINING_GOES_ON = "the same command with --resume goes on from the newest checkpoint"
_RESTORE_CONFIG = "Restore it from a copy, or train the run again."
_HARVEST_GOES_ON = "the same command goes on with what is not in the store yet"


@dataclass
class RunConfig(CrosscoderTrainConfig, SparsifyRunConfig):
    """Train a crosscoder over the activations of several models."""

    arch: str = "rdfc"
    """Architecture to train, by its registered name. The residual DFC finds differences best."""

    partners: list[str] = list_field()
    """Models to compare with MODEL, in order. Their --hookpoints follow that of MODEL; without
    --hookpoints and --layers each model is read at its middle layer."""

    partner_revisions: list[str] = list_field()
    """Revision (branch, tag or commit) of each of --partners, in order, as --revision is that of
    MODEL."""

    extra_datasets: list[str] = list_field()
    """Datasets to mix with DATASET."""

    dataset_weights: list[float] = list_field()
    """Weight of DATASET and of each extra dataset in the mix. Equal if left out."""

    chat_format: Literal["template", "plain"] = "template"
    """Whether conversations are rendered by each model's chat template, of which only the messages
    are aligned, or as plain text."""

    cache: str | None = None
    """Folder of an activation store to train from. It is harvested first if it does not exist."""

    pairs: int | None = None
    """Read only as many texts as give so many pairs. If None, all."""

    dtype: Literal["bfloat16", "float16", "float32", "int8"] = "bfloat16"
    """What the store of --cache keeps activations in; int8 takes half of bfloat16's bytes."""

    shard_pairs: int | None = None
    """Pairs in a file of the store. If None, as many as make 256 MB, at most 65,536."""

    append: bool = False
    """Add texts that the store of --cache does not have yet."""

    device: str | None = None
    """Device to run on. If None, CUDA, MPS or the CPU, whichever there is."""

    devices: list[str] = list_field()
    """Device of each model, in order, such as `cuda:0 cuda:1`. Without any, that of --device."""

    device_map: str | None = None
    """Have transformers spread each model over the devices that there are: auto, balanced,
    balanced_low_0 or sequential. Needs accelerate."""

    model_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the models. `auto` is bfloat16 where the device is fast at it."""

    trust_remote_code: bool = False
    """Run the code that comes with a model. It can do anything that you can: only for models whose
    authors you trust. Each later command on the run has to be told again."""

    json: str | None = None
    """File to write the run's summary to, besides the run folder."""

    def __post_init__(self):
        super().__post_init__()
        if is_store(self.dataset):
            self._read_from_store()
        if not self.partners:
            raise ValueError(
                "A crosscoder needs two models or more: name the others with --partners."
            )
        sources = 1 + len(self.partners)
        if self.partner_revisions and len(self.partner_revisions) != len(self.partners):
            raise ValueError(
                f"--partner_revisions gives {len(self.partner_revisions)} revisions for "
                f"{len(self.partners)} partners; give one each (`main` where it does not matter)."
            )
        for name in ("hookpoints", "layers"):
            given = getattr(self, name)
            if given and len(given) != sources:
                raise ValueError(
                    f"--{name} gives {len(given)} places for {sources} models; give one per "
                    f"model, in the order MODEL, then --partners."
                )
        if self.devices and len(self.devices) != sources:
            raise ValueError(
                f"--devices gives {len(self.devices)} devices for {sources} models; give one per "
                f"model, in the order MODEL, then --partners."
            )
        if self.devices and self.device_map is not None:
            raise ValueError("Give --devices or --device_map, not both.")
        if self.device_map not in (None, *DEVICE_MAPS):
            raise ValueError(
                f"--device_map is one of {', '.join(DEVICE_MAPS)}, not {self.device_map!r}."
            )
        if self.dataset_weights and len(self.dataset_weights) != 1 + len(self.extra_datasets):
            raise ValueError(
                f"--dataset_weights gives {len(self.dataset_weights)} weights for "
                f"{1 + len(self.extra_datasets)} datasets; give one each."
            )
        for name in ("pairs", "shard_pairs"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}.")

    def _read_from_store(self) -> None:
        """Take from the store that stands for DATASET what models were read, and where."""
        manifest = read_manifest(Path(self.dataset))
        assert manifest is not None
        sources = manifest["sources"]
        hookpoints = [source["hookpoint"] for source in sources]
        given = [self.model, *(self.partners or [source["name"] for source in sources[1:]])]
        if self.trained_on is None:
            revisions = [self.revision, *(self.partner_revisions or [None] * (len(given) - 1))]
            check_store_models(self.dataset, sources, given, revisions, self.hf_token)
        same_places = not self.layers and len(self.hookpoints) in (0, len(hookpoints))
        for asked, place in zip(self.hookpoints, hookpoints, strict=False):
            same_places &= f".{asked}".endswith(f".{place}")
        if not same_places:
            held = ", ".join(f"{source['name']} at {source['hookpoint']}" for source in sources)
            raise ValueError(
                f"The store '{self.dataset}' holds {held}; leave --hookpoints and --layers off."
            )
        for name in ("cache", "pairs", "extra_datasets", "append"):
            if getattr(self, name):
                raise ValueError(
                    f"--{name} has no meaning where the store '{self.dataset}' stands for a "
                    "dataset; leave it off."
                )
        self.partners, self.hookpoints = given[1:], hookpoints


def run_config_class(architecture: Architecture) -> type[RunConfig]:
    """RunConfig with the fields of one architecture's own configuration."""
    config_class = architecture.config_class
    return make_dataclass(
        "RunConfig",
        [("sae", config_class, field(default_factory=config_class))],
        bases=(RunConfig,),
        namespace={"__doc__": RunConfig.__doc__, "__module__": __name__},
    )


def parse_run_config(argv: Sequence[str]) -> RunConfig:
    """The options of a command line. Exits with 2, saying why, if they do not make sense."""
    parser = ArgumentParser(prog="sparsify")
    try:
        cls = run_config_class(get_architecture(_asked_architecture(argv)))
        parser.add_arguments(cls, dest="run")
        prepare(parser)
        return parser.parse_args(list(argv)).run
    except ValueError as error:
        unknown = [] if isinstance(error, ArchitectureError) else unknown_options(parser, argv)
        if unknown:  # why something seems to be missing
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        print(f"sparsify: error: {error}", file=sys.stderr)
        raise SystemExit(WRONG_USE) from None


class _HasArchitecture(TypedDict):
    arch: str


def load_run_config(
    folder: Path, token: str | None = None, *, trust_remote_code: bool = False
) -> RunConfig:
    """The options that a run was started with, from its folder.

    `token` is the hub's, for the run's models, which no run keeps; nor is it taken from there that
    their code may run, which has to be said each time. Raises FileNotFoundError if the
    folder holds no run, Damaged for options that are none.
    """
    file = folder / "config.json"
    if not file.exists():
        hint = ""
        for above in (folder.parent, folder.parent.parent):
            if (folder / CONFIG).exists() and (above / "config.json").exists():
                hint = f" It is a crosscoder of the run '{above}': name that."
                break
        raise FileNotFoundError(f"'{folder}' holds no run: there is no config.json in it.{hint}")
    options = read_json(file, _HasArchitecture, _RESTORE_CONFIG)
    options.pop("environment", None)
    options["trust_remote_code"] = trust_remote_code
    options["trained_on"] = options.get("trained_on") or {}
    cls = run_config_class(get_architecture(options["arch"]))
    with reading(file, _RESTORE_CONFIG):
        check(options, cls)
        run = cls.from_dict(options)
    run.hf_token = token
    return run


def _asked_architecture(argv: Sequence[str]) -> str:
    for i, arg in enumerate(argv):
        if arg.startswith("--arch="):
            return arg.removeprefix("--arch=")
        if arg == "--arch" and i + 1 < len(argv):
            return argv[i + 1]
    return RunConfig.arch


def _wants_overview(argv: Sequence[str]) -> bool:
    asks_help = any(arg in ("-h", "--help") for arg in argv)
    return asks_help and not any(a == "--arch" or a.startswith("--arch=") for a in argv)


@command_surroundings()
def run(argv: Sequence[str] | None = None) -> None:
    """Train a crosscoder as the command line says; the process ends as `ending` says."""
    argv, debug = take_debug(sys.argv[1:] if argv is None else argv)
    with _ending(_TRAINING_GOES_ON, debug):
        if _wants_overview(argv):
            print_overview()
            raise SystemExit(0)
        args = parse_run_config(argv)
        _on_device(lambda device: train(args, device), args)


@command_surroundings()
def harvest(argv: Sequence[str]) -> None:
    """Fill the activation store named by --cache, and report on alignment and harvest."""
    argv, debug = take_debug(argv)
    with _ending(_HARVEST_GOES_ON, debug):
        args = parse_run_config(argv)
        if args.cache is None:
            raise UsageError("Name the store's folder with --cache.")

        def job(device: torch.device) -> dict[str, Any]:
            facts = harvest_run(args, device)
            print(json.dumps(facts, indent=2))
            return facts

        _on_device(job, args)


@contextmanager
def _ending(goes_on: str, debug: bool) -> Iterator[None]:
    """`ending`, at once where other ranks may be waiting for this one."""
    try:
        with ending("sparsify", goes_on=goes_on, debug=debug):
            yield
    except SystemExit as stop:
        if dist.is_initialized() and dist.get_world_size() > 1 and stop.code:
            # To take leave of the others would be to wait for them.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(stop.code if isinstance(stop.code, int) else 1)
        raise


def _on_device(job: Callable[[torch.device], dict[str, Any]], args: RunConfig) -> None:
    """Run `job` on this process's device, and write its result to `--json`."""
    device = pick_device(args.device)
    for name in args.devices:
        pick_device(name)
    distributed = os.environ.get("LOCAL_RANK") is not None
    if distributed:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # Rank 0 may harvest for days while the others wait.
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(weeks=1)
        )
    rank = dist.get_rank() if distributed else 0
    with nullcontext() if rank == 0 else redirect_stdout(None):
        result = job(device)
    if args.json is not None and rank == 0:
        atomic_write_json(args.json, result)
    if distributed:
        dist.destroy_process_group()


def train(args: RunConfig, device: torch.device) -> dict[str, Any]:
    """Train from options; returns the summary that the run folder holds."""
    folder = RunFolder(Path(args.save_dir) / (args.run_name or "unnamed"))
    if args.resume and not is_begun(folder.path):
        print(f"There is no run in '{folder.path}' yet: it is begun.")
        args.resume = False
    if args.resume:
        folder.check_resumable(args)
    else:
        folder.check_free()
    if device.type == "cpu":
        keep_freed_memory()
    architecture = get_architecture(args.arch)
    data = architecture.load_artifacts(args, device)
    print(f"Training a {args.arch} on '{args.dataset}': " + json.dumps(data.facts))

    trainer = architecture.trainer_class(args, data, device, coder_class=architecture.coder_class)
    if args.resume and folder.newest_checkpoint() is not None:
        trainer.load_state(str(folder.path))
    elif args.finetune:
        for name, sae in trainer.saes.items():
            sae.load_state_dict(load_file(f"{args.finetune}/{name}/sae.safetensors"))
    summary = trainer.fit()
    print_summary(summary, folder.path)
    return summary


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """What a run came to, in a few lines."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    print(f"\n{summary['arch']} with {summary['num_latents']:,} latents in '{folder}':")
    if summary["fve"] is not None:
        line = f"  held-out FVE {summary['fve']:.4f}, mean L0 {summary['mean_l0']:.1f}"
        if summary.get("held_out_outliers"):
            line += f"; with the {percent(summary['held_out_outlier_share'])} of the pairs that "
            line += f"are outliers, FVE {summary['fve_with_outliers']:.4f}"
        print(line)
    names = source_names(summary["sources"])
    for s, source in enumerate(summary["sources"]):
        place = f" {source['hookpoint']}"
        line = f"  {names[s].removesuffix(place)}{place}:"
        if summary["fve"] is not None:
            line += f" FVE {summary['fve_per_source'][s]:.4f}"
            line += " (without its 5 largest dimensions "
            line += f"{summary['fve_without_top5_per_source'][s]:.4f})"
        exclusive = summary["dead_fraction_exclusive"][s]
        print(line)
        if exclusive is not None:
            block = (summary.get("exclusive_latents") or [None] * (s + 1))[s]
            of = "" if block is None else f" of its {block:,}"
            line = f"    {percent(1 - exclusive)}{of} exclusive latents fired at least once in the "
            line += f"last {summary['dead_window']:,} pairs"
            if summary.get("exclusive_judgeable") is not None:
                line += f", {summary['exclusive_judgeable'][s]:,} as often as `filter` needs to "
                line += f"judge them (on 1 in {FILTER_PAIRS // MIN_FIRINGS} pairs)"
            print(line)
    print(
        f"  {percent(summary['dead_fraction'])} of all latents did not fire in the last "
        f"{summary['dead_window']:,} pairs; {summary['pairs']:,} pairs in "
        f"{summary['wall_seconds']:,.0f} s"
    )


def print_overview() -> None:
    """sparsify's own help, and how to reach ours."""
    parser = ArgumentParser(prog="sparsify")
    parser.add_arguments(SparsifyRunConfig, dest="run")
    parser.print_help()
    print("\ncrosscoders over several models (sparsify-crosscoder):")
    print("  sparsify MODEL DATASET --arch NAME --partners MODEL ... [options]\n")
    for name in architecture_names():
        try:
            description = get_architecture(name).description
        except ArchitectureError as error:
            description = str(error)
        print(f"  --arch {name:<12} {description}")
    print("\n  sparsify --arch NAME --help lists the options of an architecture.")
