"""What differs, of all kinds, and which exclusive latents stand for a difference."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.scorability import FILTER_PAIRS

from ..outcome import Cost, Outcome
from ..runner import Record
from ..stage import TEXTS, Context, Stage
from .harvest import num_pairs
from .train import dictionary_size

if TYPE_CHECKING:
    from sparsify_crosscoder.evaluation.false_exclusives import FilterConfig
    from sparsify_crosscoder.evaluation.filter import FilterRecord

FILE = "filter.json"


@dataclass
class FilterOptions:
    """What the false-exclusive filter looks at, and its thresholds."""

    filter_pairs: int | None = None
    """pairs to read at most, as --pairs of `sparsify-crosscoder filter`"""

    predictability: float | None = None
    """as of `sparsify-crosscoder filter`"""

    shadow: float | None = None
    """as of `sparsify-crosscoder filter`"""

    min_firings: int | None = None
    """as of `sparsify-crosscoder filter`"""

    verify_differences: int = 0
    """how many of the first findings to verify, as --verify of `sparsify-crosscoder filter`: one
    prompt in four is then kept out of the list ({default})"""

    def __post_init__(self):
        if self.verify_differences < 0:
            raise ValueError(
                f"--verify_differences is a number of findings, not {self.verify_differences}."
            )

    def inputs(self) -> dict[str, Any]:
        """What a list is made by, as JSON values; as before of one that is not verified."""
        values = asdict(self)
        if not self.verify_differences:
            del values["verify_differences"]
        return values

    def config(self, outlier_multiple: float) -> FilterConfig:
        """The same for the filter."""
        from sparsify_crosscoder.evaluation.false_exclusives import FilterConfig

        thresholds = {name: value for name, value in asdict(self).items() if value is not None}
        pairs = thresholds.pop("filter_pairs", None)
        del thresholds["verify_differences"]
        return FilterConfig(pairs=pairs, outlier_multiple=outlier_multiple, **thresholds)


class Filter(Stage[FilterOptions, "FilterRecord"]):
    """Lists what differs, and judges every latent that is exclusive by its norm."""

    name = "filter"
    what = "what differs, and which exclusive latents stand for a difference"
    needs = ("train",)
    Options = FilterOptions
    group = TEXTS

    def inputs(self, ctx: Context) -> dict[str, Any]:
        return self.options.inputs() | {"score": "by what is heard"}

    def estimate(self, ctx: Context) -> Cost:
        # More are read only where latents cannot be judged on these.
        pairs = min(self.options.filter_pairs or FILTER_PAIRS, FILTER_PAIRS, num_pairs(ctx))
        latents, width = dictionary_size(ctx)
        quantities, count = ctx.quantities, self.options.verify_differences
        seconds = quantities.seconds(2 * width * (2 * width + latents) * pairs)
        if not count:
            return Cost(seconds, {"pairs": pairs})
        from sparsify_crosscoder.interventions.difference_causes import TOKENS

        whole = max(one.whole for one in quantities.models)
        seconds += quantities.seconds(2 * whole * TOKENS * count)
        return Cost(seconds, {"pairs": pairs, "verified findings": count})

    def run(self, ctx: Context, folder: Path) -> Outcome:
        from sparsify_crosscoder.evaluation.differences import (
            crosscoder_differences,
            differences_text,
        )
        from sparsify_crosscoder.evaluation.filter import filter_text
        from sparsify_crosscoder.evaluation.top import source_labels
        from sparsify_crosscoder.interventions.difference_causes import (
            prompts_kept_out,
            told_with_causes,
        )

        config = self.options.config(ctx.run.config.outlier_multiple)
        kept_out, count = {}, self.options.verify_differences
        if count:
            try:
                kept_out = prompts_kept_out(ctx.run, ctx.crosscoder, "--verify_differences")
            except ValueError as error:
                print(f"No finding is verified: {error}")
                count = 0
        found = crosscoder_differences(ctx.run, ctx.crosscoder, config, leave_out=[*kept_out])
        names = source_labels(ctx.crosscoder)
        result = told_with_causes(ctx.run, ctx.crosscoder, found, count, kept_out)
        atomic_write_json(folder / FILE, result)
        print(f"{differences_text(result, names)}\n\n{filter_text(result, names)}")
        counts = {"verdicts": result["verdicts"], "clusters": len(result["clusters"])}
        return Outcome({**counts, "differences": len(found.findings)}, [folder / FILE])

    def output(self, ctx: Context, folder: Path, record: Record) -> FilterRecord:
        from sparsify_crosscoder.evaluation.filter import FilterRecord

        return FilterRecord.read(folder / FILE, "Delete it, and the stage is done again.")
