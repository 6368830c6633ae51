"""The options of a run: what is typed, what a run folder keeps, and what a store says of both."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from simple_parsing import choice, list_field
from sparsify.__main__ import RunConfig as SparsifyRunConfig

from ..config import CrosscoderTrainConfig
from ..crosscoders.checkpoints import CONFIG
from ..harvest.placement import DEVICE_MAPS
from ..records import check, read_json, reading
from ..registry import Architecture, get_architecture
from ..store.dtypes import dtype_names
from ..store.manifest import is_store, read_manifest
from ..store.models import check_store_models
from ..training.run_folder import note_order

_RESTORE_CONFIG = "Restore it from a copy, or train the run again."


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

    answers: Literal["none", "A", "B", "both", "mix"] = "none"
    """Whose answers the conversations of the text end with. A, B: MODEL or the first partner
    answers each prompt (a conversation up to its last user's turn); both: all models answer each,
    which gives as many texts; mix: the data set's own answer, A's and B's in turn. All models read
    every text."""

    answer_tokens: int = 256
    """Most tokens of an answer, which is sampled at temperature 1."""

    answer_seed: int = 0
    """Seed of the answers: the same gives the same."""

    template_tokens: bool = False
    """Pair what a chat template writes as well (roles, markers, the newlines beside them), token by
    token: only for models with one tokenizer and one template. They lead the lists of what differs
    then; every pair knows its role."""

    chat_template_from: Literal["own", "A", "B"] = "own"
    """Whose chat template the models read: each its own, or MODEL's (A) or the first partner's (B)
    lent to those that have none and the same vocabulary, as a base model beside its chat model."""

    cache: str | None = None
    """Folder of an activation store to train from. It is harvested first if it does not exist."""

    pairs: int | None = None
    """Read only as many texts as give so many pairs. If None, all."""

    order_seed: int | None = None
    """Seed of the order in which training reads the pairs. If None, it follows the initial seed:
    --shuffle_seed plus the first of --init_seeds, which share one order."""

    dtype: str = choice(*dtype_names(), default="bfloat16")
    """What the store of --cache keeps activations in; int8 takes half of bfloat16's bytes."""

    shard_pairs: int | None = None
    """Pairs in a file of the store. If None, as many as make 256 MB, at most 65,536."""

    kl: Literal["auto", "on", "off"] = "auto"
    """Keep in the store of --cache, with every pair, how far apart the models' next-token
    distributions are there (KL, in nats) and how likely each model finds the text behind it. The
    models then run to their ends, which takes several times as long. `auto` is on where all
    models share one vocabulary, or as the store has it; without that only likelihoods are kept."""

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
        if self.partners:  # without any, they are those of a store
            self._check_counts(1 + len(self.partners))
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
        for name in ("pairs", "shard_pairs", "answer_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}.")

    def resolve_order(self) -> None:
        """Replace a None of `order_seed` by the seed that it stands for."""
        if self.order_seed is None:
            self.order_seed = self.shuffle_seed + self.init_seeds[0]

    def _check_counts(self, sources: int) -> None:
        """Raise ValueError where options that are given per model are not one for each."""
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


def resolve(config: RunConfig, manifest: dict[str, Any] | None) -> RunConfig:
    """The options with the models and hookpoints that `manifest` says of the store that stands for
    DATASET; None where DATASET is no store.

    Raises ValueError for options that do not go with the store, and where no partner is named.
    """
    if manifest is None:
        if not config.partners:
            raise ValueError(
                "A crosscoder needs two models or more: name the others with --partners."
            )
        return replace(config)
    sources = manifest["sources"]
    hookpoints = [source["hookpoint"] for source in sources]
    given = [config.model, *(config.partners or [source["name"] for source in sources[1:]])]
    if config.trained_on is None:
        revisions = [config.revision, *(config.partner_revisions or [None] * (len(given) - 1))]
        check_store_models(config.dataset, sources, given, revisions, config.hf_token)
    same_places = not config.layers and len(config.hookpoints) in (0, len(hookpoints))
    for asked, place in zip(config.hookpoints, hookpoints, strict=False):
        same_places &= f".{asked}".endswith(f".{place}")
    if not same_places:
        held = ", ".join(f"{source['name']} at {source['hookpoint']}" for source in sources)
        raise ValueError(
            f"The store '{config.dataset}' holds {held}; leave --hookpoints and --layers off."
        )
    for name in ("cache", "pairs", "extra_datasets", "append"):
        if getattr(config, name):
            raise ValueError(
                f"--{name} has no meaning where the store '{config.dataset}' stands for a "
                "dataset; leave it off."
            )
    for name in ("answers", "template_tokens", "chat_template_from"):
        if getattr(config, name) != getattr(RunConfig, name):
            raise ValueError(
                f"--{name} says how texts are harvested, and the store '{config.dataset}' is "
                "harvested already; leave it off."
            )
    return replace(config, partners=given[1:], hookpoints=hookpoints)


def resolved(config: RunConfig) -> RunConfig:
    """`resolve` with the manifest of the store that DATASET names, if it is one."""
    is_one = is_store(config.dataset)
    return resolve(config, read_manifest(Path(config.dataset)) if is_one else None)


def run_config_class(architecture: Architecture) -> type[RunConfig]:
    """RunConfig with the fields of one architecture's own configuration."""
    config_class = architecture.config_class
    return make_dataclass(
        "RunConfig",
        [("sae", config_class, field(default_factory=config_class))],
        bases=(RunConfig,),
        namespace={"__doc__": RunConfig.__doc__, "__module__": __name__},
    )


def run_folder(config: RunConfig) -> Path:
    """Where a run with these options is, or will be."""
    return Path(config.save_dir) / (config.run_name or "unnamed")


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
    note_order(options)
    cls = run_config_class(get_architecture(options["arch"]))
    with reading(file, _RESTORE_CONFIG):
        check(options, cls)
        config = resolved(cls.from_dict(options))
    config.hf_token = token
    config.save_dir, config.run_name = str(folder.absolute().parent), folder.absolute().name
    return config
