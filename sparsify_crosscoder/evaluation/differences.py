"""All differences of a run in one list: latents, shifts of the mean, linear changes of the basis.

M latents, D width of a source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..crosscoders import Crosscoder
from ..runs.pairs import run_store
from ..runs.run import Run
from ..scorability import FILTER_PAIRS, LITTLE
from ..text.roles import NO_WRITER, Role, role_names
from .difference_components import with_components
from .difference_copies import Candidate, Member, member, merged
from .difference_kinds import latent_candidates, linear_candidate
from .difference_owners import led_by_owners
from .difference_score import LARGEST_Q, LEAST_KL, LEAST_STRENGTH, beyond_noise
from .false_exclusives import FilterConfig
from .filter import Filtered, filter_crosscoder
from .latent_shifts import CodedPairs, coded, explained_along, latent_shifts
from .linear_changes import fit_residuals, linear_changes
from .noted_pairs import NotedPairs, beside, reference_pairs, run_pairs
from .residuals import Residual, beside_prediction, predictions
from .text_clusters import q_values

LISTED = 20


@dataclass(frozen=True)
class DifferenceConfig:
    """What is looked at for differences, and what is listed."""

    pairs: int = FILTER_PAIRS
    """Pairs to look at, at most."""

    ridge: float = 1e-3
    """Ridge penalty of maps, as a multiple of the mean variance of what they read."""

    outlier_multiple: float = 2.0
    """Pairs are left out as in training: those whose norm exceeds this multiple of the median."""

    memory: float = 4e9
    """Bytes that all latents' shifts may take; if they need more, there are several passes."""

    least_strength: float = LEAST_STRENGTH
    """Least strength of a finding."""

    least_kl: float = LEAST_KL
    """Least mean KL of the next tokens where a finding is present, nats, where it is known."""

    largest_q: float = LARGEST_Q
    """Largest `chance_q` of what is in the list at all."""

    by_maps: bool = False
    """Whether sources that share a basis are told from each other by maps, as others are."""

    use_kl: bool = True
    """Whether the KL of the next tokens counts where it is known."""

    @classmethod
    def kept(cls, values: Mapping[str, Any]) -> DifferenceConfig:
        """Of a list that was kept, by this version or an earlier one."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    @classmethod
    def of(cls, config: FilterConfig) -> DifferenceConfig:
        """What goes with a filter's."""
        pairs = FILTER_PAIRS if config.pairs is None else config.pairs
        return cls(pairs, config.ridge, config.outlier_multiple)


@dataclass(frozen=True)
class Difference:
    """One thing that differs between the models."""

    rank: int
    """From 1 on."""

    kind: str
    """"exclusive", "shared", "difference", "component", "mean" or "map"."""

    source: int
    """The source that has it, or more of it."""

    latent: int | None
    """None for a component, a mean or a map."""

    members: tuple[Member, ...]
    """What else shows the same."""

    verdict: str
    """Of an exclusive latent and one of the difference the filter's; else "turned", "grew",
    "shrank" or "moved" (a shared latent whose decoders agree), "shifted" or "changed"."""

    finding: bool
    """Whether its strength, and its KL if known, are those of a finding."""

    score: float
    """See `difference_score`."""

    strength: float
    """The same without what is heard of it."""

    chance_q: float
    """The q value of its t, over everything that was looked at (Benjamini and Hochberg 1995): that
    it is no difference at all."""

    effect: float
    """Mean shift of the white residual where it is present, in standard deviations; of a linear
    change the share of the variance along what it writes that it explains."""

    error: float
    """Standard error of the effect, clustered by text."""

    share: float
    """Share of the residual's variance, all directions together, that it explains."""

    firings: int
    """Pairs on which it is present; all for a mean or a map."""

    texts: int
    """Texts in which it is present."""

    pairs: int
    """Pairs that were looked at."""

    dense: bool
    """Whether it fires on over a tenth of the pairs."""

    cosine: float | None
    """Of a shared latent's decoder with what the other sources' decoders become in its source."""

    growth: float | None
    """Length of the first as a multiple of the second's."""

    roles: dict[str, float] | None
    """Share of those pairs by who said them, if known."""

    writers: dict[str, float] | None
    """Share of them by the source that wrote them, "-1" for what came with the data set."""

    kl: float | None
    """Mean KL divergence of the models' next tokens where it is present, nats, if known."""

    kl_heard: float | None
    """The same over what an assistant says in the texts in which it is present, each text alike;
    where it is present if none says anything."""

    excess_kl: float | None
    """Covariance of presence with that KL, nats a pair."""

    direction: Tensor
    """What its source has more of where it is present, on average, in raw activations, `[D]`."""

    reads: Tensor | None
    """Of a map, the weights with which it reads the other source's raw activations, `[D]`: what
    they give, less its mean, is how far the source moves along the direction."""

    component: int | None = None
    """Which of those of `difference_components` it is, if it is one."""

    q_value: float | None = None
    """Share of the list down to it that is false, by what the nulls list; None without nulls, and
    of what next tokens do not tell of."""

    q_interval: tuple[float, float] | None = None
    """95% interval of that share."""

    def to_dict(self) -> dict[str, Any]:
        """All but the vectors."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        del row["direction"], row["reads"]
        return {**row, "members": [member._asdict() for member in self.members]}


class Compared(NamedTuple):
    """What a source was compared with."""

    source: int
    reference: int | None
    """The source that shares its basis; None where a ridge map predicts it from all others."""

    why: str
    left: float
    """Share of the source's variance that the residual has."""

    @property
    def strangers(self) -> bool:
        """Whether the others tell nearly nothing of it: not the same text, or unrelated models."""
        return self.reference is None and self.left >= LITTLE

    @classmethod
    def of(cls, residual: Residual) -> Compared:
        """In words and numbers."""
        made = residual.prediction
        return cls(made.source, made.reference, made.why, residual.left)


class NullCount(NamedTuple):
    """What was listed of a pair without what is looked for."""

    name: str
    findings: int
    """Entries that would be findings of this list."""

    tested: int
    """Latents, shifts and linear changes that could have been in its list."""


@dataclass(frozen=True)
class Differences:
    """The differences of a run, the highest score first."""

    entries: list[Difference]
    """All that are beyond chance; those behind the findings are too small to say much of."""

    filtered: Filtered
    residuals: list[Compared]

    pairs: int
    """Pairs that were looked at."""

    texts: int
    """Texts that they are from."""

    mean_kl: float | None
    """KL divergence over all pairs, nats, if known."""

    config: DifferenceConfig
    found: CodedPairs
    """The pairs, and where latents and components are present on them."""

    tested: int
    """Latents, shifts and linear changes that could have been in the list."""

    nulls: tuple[NullCount, ...] = ()
    """What the q values are from."""

    @property
    def findings(self) -> list[Difference]:
        """What is listed unless all is asked for."""
        return [one for one in self.entries if one.finding]

    def column(self, one: Difference) -> int | None:
        """Its column in `found`; None for what is everywhere."""
        if one.component is not None:
            return self.found.crosscoder.num_latents + one.component
        return one.latent

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": [one.to_dict() for one in self.entries],
            "residuals": [one._asdict() for one in self.residuals],
            "difference_pairs": self.pairs,
            "difference_texts": self.texts,
            "mean_kl": self.mean_kl,
            "tested": self.tested,
            "nulls": [null._asdict() for null in self.nulls],
            "differences": asdict(self.config),
            **self.filtered.to_dict(),
        }

    def text(self, names: Sequence[str], everything: bool = False) -> str:
        """See `differences_text`."""
        return differences_text(self.to_dict(), names, everything)


def list_differences(
    run: Run,
    config: FilterConfig | None = None,
    *,
    reference: str | Path | None = None,
    seed: int | None = None,
    device: str | torch.device | None = None,
) -> Differences:
    """What differs between a run's models, on the run's pairs: all kinds in one list.

    `reference` is a store of other models, such as the fine-tune's base in its place. Where it has
    the same pairs, the list says how far the fine-tune is from its base where latents are present;
    else what explains as much there is no difference of these models. `seed` chooses one of several
    crosscoders. Raises ValueError where the run's models, texts or store have changed.
    """
    if config is None:
        config = FilterConfig(outlier_multiple=run.config.outlier_multiple)
    return crosscoder_differences(run, run.crosscoder(seed, device), config, reference)


def crosscoder_differences(
    run: Run,
    crosscoder: Crosscoder,
    config: FilterConfig,
    reference: str | Path | None = None,
    leave_out: Sequence[int] = (),
    settings: DifferenceConfig | None = None,
) -> Differences:
    """As `list_differences`, with one of the run's crosscoders on its device.

    The list does not read the texts with the numbers `leave_out`, by which it may then be tested.
    Its `settings` go with the filter's if they are left out.
    """
    others, settings = None, settings or DifferenceConfig.of(config)
    stream, noted = run_pairs(run, settings.pairs, crosscoder.device, config.memory)
    if leave_out:
        noted = noted.at(~torch.isin(noted.texts, torch.tensor(leave_out)))
    if not settings.use_kl:
        noted = replace(noted, kl=None)
    if reference is not None:
        others = reference_pairs(Path(reference), crosscoder.d_sources, settings.pairs)
        store = run_store(run.config)
        same = None if store is None else beside(store, Path(reference), noted)
        if same is not None:
            noted = replace(noted, beside=same, kl=same.kl)
    filtered = filter_crosscoder(crosscoder, stream, config)
    return differences_of(crosscoder, noted, filtered, settings, others)


def differences_of(
    crosscoder: Crosscoder,
    pairs: NotedPairs,
    filtered: Filtered,
    config: DifferenceConfig,
    reference: NotedPairs | None = None,
) -> Differences:
    """As `list_differences`, on any pairs of a crosscoder's sources that were filtered.

    Shifts of the mean and linear changes are left out beside a reference of other pairs.
    """
    found = coded(crosscoder, pairs, config.outlier_multiple)
    predicted = predictions(crosscoder, found.moments, config.ridge, config.by_maps)
    if pairs.beside is not None:
        reference, predicted = None, [beside_prediction(crosscoder, pairs.beside.source)]
    fitted = fit_residuals(found, predicted)
    if pairs.beside is not None:
        found = with_components(found, fitted[0].residual)
    shifts = latent_shifts(found, [one.residual for one in fitted], config.memory)
    if reference is None:
        candidates = latent_candidates(found, fitted, shifts, filtered)
        changes = linear_changes(found, fitted, config.ridge)
        candidates += [linear_candidate(found, fitted, change) for change in changes]
    else:
        there = coded(crosscoder, reference, config.outlier_multiple, found.level)
        explained = explained_along(there, [one.residual for one in fitted], shifts)
        elsewhere = [beyond_noise(one, there.present / len(there)) for one in explained]
        candidates = latent_candidates(found, fitted, shifts, filtered, elsewhere)
    q = q_values(torch.tensor([one.p_value for one in candidates], dtype=torch.float64))
    tested = [
        (one, float(value))
        for one, value in zip(candidates, q, strict=True)
        if value <= config.largest_q and one.score > 0
    ]
    tested.sort(key=lambda pair: -pair[0].score)
    values = {id(one): value for one, value in tested}
    groups = led_by_owners(found, fitted, merged(found, [one for one, _ in tested]))
    where = _where(found, [one.latent for one, _ in groups if one.latent is not None])
    entries = [
        _difference(found, rank, one, [member(m) for m in others], where, values[id(one)], config)
        for rank, (one, others) in enumerate(groups, 1)
    ]
    kl = found.pairs.kl
    return Differences(
        entries,
        filtered,
        [Compared.of(one.residual) for one in fitted],
        len(found),
        found.num_texts,
        None if kl is None else float(kl.double().mean()),
        config,
        found,
        len(candidates),
    )


@dataclass(frozen=True)
class _Where:
    """On what an entry is present."""

    firings: int
    texts: int
    roles: dict[str, float] | None
    writers: dict[str, float] | None
    kl: float | None
    excess_kl: float | None


def _shares(values: Tensor | None, places: Tensor) -> dict[int, float] | None:
    """The share of some places that each value has, the most frequent first."""
    if values is None:
        return None
    found, counts = values[places].unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    return {int(found[i]): float(counts[i]) / max(len(places), 1) for i in order}


def _where(found: CodedPairs, latents: Sequence[int]) -> dict[int | None, _Where]:
    """Of some latents, and of what is everywhere under None."""
    known = None if found.pairs.kl is None else found.pairs.kl.double()
    mean = None if known is None else float(known.mean())
    everywhere = _Where(len(found), found.num_texts, None, None, mean, None)
    result: dict[int | None, _Where] = {None: everywhere}
    _, columns, rows = found.entries(torch.tensor(latents, dtype=torch.long))
    order = columns.argsort(stable=True)
    counts = columns.bincount(minlength=len(latents)).tolist()
    for latent, places in zip(latents, rows[order].split(counts), strict=True):
        kl = excess = None
        if known is not None and mean is not None:
            kl = float(known[places].mean())
            excess = (kl - mean) * len(places) / len(found)
        roles, writers = (_shares(x, places) for x in (found.pairs.roles, found.pairs.writers))
        said = None if roles is None else {role_names([r])[0]: n for r, n in roles.items()}
        wrote = None if writers is None else {str(w): n for w, n in writers.items()}
        texts = len(found.texts[places].unique())
        result[latent] = _Where(len(places), texts, said, wrote, kl, excess)
    return result


def _difference(
    found: CodedPairs,
    rank: int,
    one: Candidate,
    members: Sequence[Member],
    where: Mapping[int | None, _Where],
    chance_q: float,
    config: DifferenceConfig,
) -> Difference:
    here = where[one.latent]
    factors = found.crosscoder.factors.cpu()
    reads = one.reads
    if reads is not None and one.reference is not None:
        reads = reads * factors[one.reference] / factors[one.source]
    latent, component = one.latent, None
    if one.kind == "component" and one.latent is not None:
        latent, component = None, one.latent - found.crosscoder.num_latents
    return Difference(
        rank,
        one.kind,
        one.source,
        latent,
        tuple(members),
        one.verdict,
        one.strength >= config.least_strength and told_by_next_tokens(here.kl, config),
        one.score,
        one.strength,
        chance_q,
        one.effect,
        one.error,
        one.share,
        here.firings,
        here.texts,
        len(found),
        one.latent is not None and bool(found.dense[one.latent]),
        one.cosine,
        one.growth,
        here.roles,
        here.writers,
        here.kl,
        one.kl_heard,
        here.excess_kl,
        one.direction / factors[one.source],
        reads,
        component,
    )


def told_by_next_tokens(kl: float | None, config: DifferenceConfig) -> bool:
    """Whether the next tokens tell of something that is present where their KL is so large."""
    return kl is None or kl >= config.least_kl


def differences_text(
    found: Mapping[str, Any], names: Sequence[str], everything: bool = False
) -> str:
    """The list in words, as `Differences.to_dict` has it, with a name for each source.

    Of rows that were verified it says so.
    """
    rows = [row for row in found["rows"] if everything or row["finding"]]
    smaller = len(found["rows"]) - len(rows)
    lines = [f"{len(rows):,} differences between the models; the strongest first:"]
    if not rows:
        lines = ["no difference between the models reaches the strength of a finding"]
    for compared in (Compared(**one) for one in found["residuals"]):
        if compared.strangers:
            lines.append(stranger_text(names[compared.source], compared.left))
    for row in rows if everything else rows[:LISTED]:
        lines += _row_lines(row, names, found["mean_kl"])
    lines += _null_lines(found.get("nulls", ()))
    if not everything and len(rows) > LISTED:
        lines.append(f"  and {len(rows) - LISTED:,} more")
    if smaller:
        lines.append(f"{smaller:,} smaller ones are beyond chance; --all lists them")
    return "\n".join(lines)


def stranger_text(name: str, left: float) -> str:
    """What it means that the other models tell nearly nothing of a source."""
    return (
        f"warning: the other models tell {max(1 - left, 0):.0%} of the variance of {name}: the "
        "pairs are not of the same text, or the models have nothing in common; what is listed says "
        "little"
    )


def _null_lines(nulls: Sequence[Mapping[str, Any]]) -> list[str]:
    if not nulls:
        return ["no error rate is known; `null` makes pairs without a difference"]
    found = ", ".join(f"{n['name']} {n['findings']:,} of {n['tested']:,}" for n in nulls)
    return [f"findings where nothing is to be found: {found}"]


def _row_lines(row: Mapping[str, Any], names: Sequence[str], mean_kl: float | None) -> list[str]:
    what = {
        "exclusive": f"latent {row['latent']}, exclusive ({row['verdict'].replace('_', ' ')})",
        "shared": f"latent {row['latent']}, shared, {row['verdict']}",
        "difference": f"latent {row['latent']} of the difference "
        f"({row['verdict'].replace('_', ' ')})",
        "component": f"component {row.get('component')} of what it has beyond the reference",
        "mean": "a constant shift",
        "map": "a linear change of what the other model has",
    }[row["kind"]]
    line = f"{row['rank']:>4}  score {row['score']:.3f}  {names[row['source']]}: {what}"
    told = []
    if row.get("q_value") is not None:
        low, high = row["q_interval"]
        told.append(f"q {row['q_value']:.2f} ({low:.2f} to {high:.2f})")
    if row["kind"] not in ("mean", "map"):
        dense = ", dense" if row["dense"] else ""
        told.append(
            f"on {row['firings'] / row['pairs']:.2%} of the pairs in {row['texts']:,} texts{dense}"
        )
        told.append(f"moves it by {row['effect']:.1f} standard deviations")
    if row["cosine"] is not None:
        told.append(f"decoders: cosine {row['cosine']:.2f}, {row['growth']:.2f} times as long")
    if row["roles"] and set(row["roles"]) != set(role_names([Role.PLAIN])):
        told.append(", ".join(f"{n:.0%} {role}" for role, n in row["roles"].items()))
    if row["writers"] and set(row["writers"]) != {str(NO_WRITER)}:
        wrote = {str(NO_WRITER): "the data set", **{str(s): n for s, n in enumerate(names)}}
        told.append(
            "written by " + ", ".join(f"{wrote[s]} {n:.0%}" for s, n in row["writers"].items())
        )
    if row["kl"] is not None:
        told.append(f"next tokens differ by {_nats(row)} ({mean_kl:.2f} anywhere)")
    lines = [line]
    if told:
        lines.append(f"      {'; '.join(told)}")
    if row["members"]:
        lines.append(f"      also {_members(row['members'])}")
    if "verification" in row:
        lines += [f"      {sentence}" for sentence in row["verification"]["sentences"]]
    return lines


def _nats(row: Mapping[str, Any]) -> str:
    there, heard = (f"{row[kl]:.2f}" for kl in ("kl", "kl_heard"))
    return f"{there} nats there" + (f" and {heard} in the answers" if heard != there else "")


def _members(members: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for kind, said in (
        ("exclusive", "exclusive"),
        ("shared", "shared"),
        ("difference", "difference"),
    ):
        latents = [str(one["latent"]) for one in members if one["kind"] == kind]
        if latents:
            more = f" and {len(latents) - 5} more" if len(latents) > 5 else ""
            parts.append(f"{said} latents {', '.join(latents[:5])}{more}")
    everywhere = {
        "component": "a component",
        "mean": "a shift of the mean",
        "map": "a linear change",
    }
    parts += [
        everywhere[kind]
        for kind in dict.fromkeys(one["kind"] for one in members)
        if kind in everywhere
    ]
    return "; ".join(parts)
