"""What users do not import by name, but what golden files hold."""

from delphi_adapters.categories import CategoryJudge
from delphi_adapters.compat import TokenwiseTokenizer
from delphi_adapters.features import schema
from delphi_adapters.flagging import FlaggingExplainer
from delphi_adapters.interpretability import InterpretabilityFilter
from delphi_adapters.judges.exclusivity import ExclusivityJudge, SteeredAnswers
from delphi_adapters.judges.reliability import rated_items, repeat
from delphi_adapters.judges.rubric_runs import Answers, evaluate
from delphi_adapters.judges.rubrics import Rubric
from delphi_adapters.judges.rubrics import shipped as shipped_rubrics
from sparsify_crosscoder.activations.shards import write_shard
from sparsify_crosscoder.activations.sources import Source

__all__ = [
    "Answers",
    "CategoryJudge",
    "ExclusivityJudge",
    "FlaggingExplainer",
    "InterpretabilityFilter",
    "Rubric",
    "Source",
    "SteeredAnswers",
    "TokenwiseTokenizer",
    "evaluate",
    "rated_items",
    "repeat",
    "schema",
    "shipped_rubrics",
    "write_shard",
]
