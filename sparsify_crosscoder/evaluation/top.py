"""Where the latents of a run fire most: snippets of text in every model's own tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..crosscoders import Crosscoder, SparseCode
from ..harvest.model_identity import source_names
from ..runs.run import Run
from ..store.normalization import within_norm
from ..text.roles import LETTERS, who_said
from .latent_moments import DENSE_FRACTION

if TYPE_CHECKING:
    import datasets

CONTEXT_TOKENS = (12, 6)  # before and after the strongest token
ROLES = frozenset(
    ["system", "developer", "user", "human", "assistant", "model", "gpt", "bot", "tool", "function"]
)
_HEADER_TOKENS = 8  # between a special token and the end of a role's name


@dataclass
class Occurrences:
    """Every activation of a crosscoder over some pairs, entries sorted by pair.

    `acts` [E], `latents` [E], `rows` [E] (pair of each entry); `windows` [N] and `positions` [N]
    say which window of the text a pair is from, and which of its pairs it is.
    """

    acts: Tensor
    latents: Tensor
    rows: Tensor
    windows: Tensor
    positions: Tensor
    num_latents: int

    def firing_counts(self) -> Tensor:
        """Pairs on which each latent fires, `[M]`."""
        return torch.bincount(self.latents, minlength=self.num_latents)

    def energies(self) -> Tensor:
        """Sum of squared activations of each latent, `[M]`."""
        return torch.zeros(self.num_latents).index_add_(0, self.latents, self.acts.pow(2))


@dataclass
class Snippet:
    """One place where a latent fires: its activation, and the text in each model's tokens."""

    activation: float
    text_id: int
    texts: list[str]
    note: str = ""
    """What the strongest token is, where it is no text: a special token or a template's."""
    said: str = ""
    """Who said the strongest token in a conversation, and which model wrote it."""


@dataclass
class LatentReport:
    """What `top` shows of one latent."""

    latent: int
    block: str
    relative_decoder_norm: float
    firing_fraction: float
    max_activation: float
    snippets: list[Snippet]


@torch.no_grad()
def collect_occurrences(
    crosscoder: Crosscoder,
    chunks: Iterator[tuple[list[Tensor], Tensor, Tensor]],
    outlier_multiple: float = 2.0,
) -> Occurrences:
    """Encode pairs given as (raw activations per source, window [n], position in it [n]).

    Outliers are left out: pairs whose norm in a source is more than `outlier_multiple` times the
    crosscoder's `median_norms`, or the chunk's median where it has none (B.1.4); 0 keeps all.
    """
    acts, latents, rows, windows, positions = [], [], [], [], []
    seen = 0
    for raw, window, position in chunks:
        keep = within_norm(raw, outlier_multiple, medians=crosscoder.median_norms)
        raw, kept = [x[keep] for x in raw], keep.cpu()
        window, position = window[kept], position[kept]
        code: SparseCode = crosscoder.encode_sparse(raw)
        acts.append(code.acts.float().cpu())
        latents.append(code.indices.cpu())
        rows.append(code.rows.cpu() + seen)
        windows.append(window)
        positions.append(position)
        seen += len(window)
    if not seen:
        raise ValueError("There are no pairs to look at.")
    joined = [torch.cat(parts) for parts in (acts, latents, rows, windows, positions)]
    return Occurrences(*joined, num_latents=crosscoder.num_latents)


def largest_activations(
    crosscoder: Crosscoder,
    chunks: Iterator[tuple[list[Tensor], Tensor, Tensor]],
    latents: Tensor,
    outlier_multiple: float = 2.0,
) -> Tensor:
    """Each latent's largest activation over some pairs, s_max of B.4.3, `[len(latents)]`.

    Pairs are those of `collect_occurrences`. 0 for a latent that never fires.
    """
    found = collect_occurrences(crosscoder, chunks, outlier_multiple)
    largest = torch.zeros(crosscoder.num_latents)
    largest.scatter_reduce_(0, found.latents, found.acts, "amax")
    return largest[latents.cpu()]


def choose_latents(crosscoder: Crosscoder, found: Occurrences, count: int) -> list[int]:
    """The `count` latents per source that say most about what that source has alone.

    Of an exclusive block, those that carry most energy (activation squared times decoder norm
    squared); without such blocks, those with the most extreme relative decoder norm. Latents that
    never fire are left out; those that fire on over a tenth of the pairs come last.
    """
    return [latent for some in choose_by_source(crosscoder, found, count) for latent in some]


def choose_by_source(crosscoder: Crosscoder, found: Occurrences, count: int) -> list[list[int]]:
    """The latents of `choose_latents`, those of each source by themselves."""
    counts = found.firing_counts()
    dense = (counts > DENSE_FRACTION * len(found.windows)).tolist()
    norms = crosscoder.decoder_norms().cpu()
    energies = (found.energies() * norms.pow(2).sum(1)).tolist()
    firing = set(counts.nonzero()[:, 0].tolist())
    chosen: list[list[int]] = []
    for source in range(len(crosscoder.d_sources)):
        block = crosscoder.partition.exclusive(source)
        scores = energies if block else crosscoder.relative_decoder_norm(source).tolist()
        candidates = firing.intersection(block) if block else firing
        before = {latent for some in chosen for latent in some}
        ranked = sorted((dense[i], -scores[i], i) for i in candidates)
        chosen.append([i for _, _, i in ranked[:count] if i not in before])
    return chosen


def in_turn(groups: Sequence[Sequence[int]]) -> list[int]:
    """The first of each group, then the second of each, and so on."""
    longest = max(map(len, groups), default=0)
    return [group[i] for i in range(longest) for group in groups if i < len(group)]


def describe_latents(
    crosscoder: Crosscoder,
    found: Occurrences,
    latents: Sequence[int],
    windows: datasets.Dataset,
    tokenizers: Sequence[Any],
    num_snippets: int = 5,
) -> list[LatentReport]:
    """The strongest occurrences of each latent, at most one from a window."""
    relative = crosscoder.relative_decoder_norm()
    counts = found.firing_counts()
    reports = []
    for latent in latents:
        entries = (found.latents == latent).nonzero()[:, 0]
        entries = entries[found.acts[entries].argsort(descending=True)]
        where = found.windows[found.rows[entries]]
        snippets = []
        for entry in _first_of_each(where)[:num_snippets]:
            here = entries[where == where[entry]]
            active = {int(found.positions[found.rows[e]]): float(found.acts[e]) for e in here}
            window = windows[int(where[entry])]
            peak = int(found.positions[found.rows[entries[entry]]])
            texts = [
                mark_tokens(window, s, active, peak, tokenizer)
                for s, tokenizer in enumerate(tokenizers)
            ]
            notes = [
                template_note(window, s, peak, tokenizer) for s, tokenizer in enumerate(tokenizers)
            ]
            strength = float(found.acts[entries[entry]])
            note = next(filter(None, notes), "")
            text_id, said = int(window["text_id"]), who_said(window, peak)
            snippets.append(Snippet(strength, text_id, texts, note, said))
        reports.append(
            LatentReport(
                latent,
                next(b.name for b in crosscoder.partition.blocks if b.start <= latent < b.stop),
                float(relative[latent]),
                int(counts[latent]) / len(found.windows),
                snippets[0].activation if snippets else 0.0,
                snippets,
            )
        )
    return reports


def _first_of_each(values: Tensor) -> list[int]:
    _, first = np.unique(values.numpy(), return_index=True)
    return sorted(first.tolist())


def mark_tokens(
    window: dict[str, Any], source: int, active: dict[int, float], peak: int, tokenizer: Any
) -> str:
    """The text around pair `peak` of a window, active tokens of `source` in «guillemets».

    `active` maps positions among the window's pairs to activations.
    """
    ids, pairs = window[f"input_ids_{source}"], window[f"pairs_{source}"]
    marked = {pairs[position] for position in active}
    before, after = CONTEXT_TOKENS
    start, stop = max(pairs[peak] - before, 0), min(pairs[peak] + after + 1, len(ids))
    pieces: list[str] = []
    run: list[int] = []
    # Decoded in runs, so that characters split over several tokens come out whole.
    for i in range(start, stop):
        if i in marked:
            if run:
                pieces.append(tokenizer.decode(run))
                run = []
            pieces.append(f"«{tokenizer.decode([ids[i]])}»")
        else:
            run.append(ids[i])
    if run:
        pieces.append(tokenizer.decode(run))
    return "".join(pieces).replace("\n", "⏎")


def template_note(window: dict[str, Any], source: int, peak: int, tokenizer: Any) -> str:
    """What pair `peak` of a window is where no one has said it, else "": a special token, or what
    a chat template puts beside one, such as a role's name."""
    ids, place = window[f"input_ids_{source}"], window[f"pairs_{source}"][peak]
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    if ids[place] in special:
        return f"special token {tokenizer.decode([ids[place]])}"
    first = max(place - _HEADER_TOKENS, 0)
    start = next((i for i in range(place, first - 1, -1) if ids[i] in special), None)
    if start is None or ids[start] == tokenizer.bos_token_id:
        return ""
    behind = tokenizer.decode(ids[start + 1 : place + 1]).strip().lower()
    header = tokenizer.decode(ids[start + 1 : start + 1 + _HEADER_TOKENS])
    named = next(iter(re.findall(r"\w+", header)), "").lower()
    if behind and not (named in ROLES and named.startswith(behind)):
        return ""
    return f"chat template {tokenizer.decode(ids[start : place + 1])!r}"


@dataclass(frozen=True)
class TopLatents:
    """Latents of a run, and where they fire most."""

    reports: list[LatentReport]
    names: list[str]
    """A letter and the model's name for each source."""

    alike: bool
    """Whether all models read the same tokens."""

    def to_list(self) -> list[dict[str, Any]]:
        return [asdict(report) for report in self.reports]

    def text(self) -> str:
        """Latents and their snippets, one line per model, or one for all if they read alike."""
        names, lines = self.names, []
        if self.alike:
            lines.append(f"{', '.join(names)}: the same tokens, shown once.")
            names = ["+".join(name.partition(" ")[0] for name in names)]
        for report in self.reports:
            lines += _report_lines(report, names)
        return "\n".join(lines)


def _report_lines(report: LatentReport, names: Sequence[str]) -> list[str]:
    width = max(map(len, names))
    noted = sum(bool(snippet.note) for snippet in report.snippets)
    lines = [
        f"\nlatent {report.latent}  {report.block}  relative decoder norm "
        f"{report.relative_decoder_norm:.3f}  fires on {report.firing_fraction:.3%}  "
        f"max activation {report.max_activation:.2f}"
    ]
    if 2 * noted > len(report.snippets):
        what = ", ".join(dict.fromkeys(s.note for s in report.snippets if s.note))
        lines.append(f"  fires on what no one has said: {what}")
    for snippet in report.snippets:
        said = [words for words in (snippet.said, snippet.note) if words]
        note = f"  ({'; '.join(said)})" if said else ""
        for s, (name, text) in enumerate(zip(names, snippet.texts[: len(names)], strict=True)):
            strength = f"{snippet.activation:8.2f}" if s == 0 else " " * 8
            lines.append(f"  {strength}  {name:<{width}}  {text}{note if s == 0 else ''}")
    return lines


def top(
    run: Run,
    *,
    latents: Sequence[int] | None = None,
    count: int = 5,
    snippets: int = 5,
    pairs: int = 100_000,
    seed: int | None = None,
    device: str | torch.device | None = None,
) -> TopLatents:
    """Where latents of a run fire most on its first `pairs` pairs.

    Without `latents`, `count` of each exclusive block in turn, or those with the most extreme
    relative decoder norm. Raises ValueError for a latent that there is not.
    """
    crosscoder = run.crosscoder(seed, device)
    check_latents(crosscoder, latents or ())
    first = run.first_pairs(pairs, device)
    found = collect_occurrences(crosscoder, first.chunks, run.config.outlier_multiple)
    if latents is None:
        latents = in_turn(choose_by_source(crosscoder, found, count))
    reports = describe_latents(
        crosscoder, found, latents, first.windows, first.tokenizers, snippets
    )
    vocabularies = [tokenizer.get_vocab() for tokenizer in first.tokenizers]
    alike = all(one == vocabularies[0] for one in vocabularies) and all(
        len(set(snippet.texts)) == 1 for report in reports for snippet in report.snippets
    )
    return TopLatents(reports, source_labels(crosscoder), alike)


def check_latents(crosscoder: Crosscoder, latents: Sequence[int]) -> None:
    """Raise ValueError for a latent that a crosscoder has not."""
    for latent in latents:
        if not 0 <= latent < crosscoder.num_latents:
            raise ValueError(f"There are latents 0..{crosscoder.num_latents - 1}, not {latent}.")


def source_labels(crosscoder: Crosscoder) -> list[str]:
    """A letter and the model's name for each source."""
    names = source_names(crosscoder.sources)
    return [f"{letter} {name}" for letter, name in zip(LETTERS, names, strict=False)]
