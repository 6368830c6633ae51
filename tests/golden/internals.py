"""What users do not import by name, but what golden files hold."""

from delphi_adapters.explaining.categories import CategoryJudge
from delphi_adapters.explaining.features import schema
from delphi_adapters.explaining.flagging import FlaggingExplainer
from delphi_adapters.explaining.interpretability import InterpretabilityFilter
from delphi_adapters.judging.exclusivity import ExclusivityJudge, SteeredAnswers
from delphi_adapters.judging.reliability import rated_items, repeat
from delphi_adapters.judging.rubric_runs import Answers, evaluate
from delphi_adapters.judging.rubrics import Rubric
from delphi_adapters.judging.rubrics import shipped as shipped_rubrics
from sparsify_crosscoder.harvest.sources import Source
from sparsify_crosscoder.store.shards import write_shard

# isort: split
# delphi can be imported behind delphi_adapters.
from delphi.latents import ActivatingExample, LatentRecord, NonActivatingExample
from delphi.latents.latents import Latent

__all__ = [
    "ActivatingExample",
    "Answers",
    "CategoryJudge",
    "ExclusivityJudge",
    "FlaggingExplainer",
    "InterpretabilityFilter",
    "Latent",
    "LatentRecord",
    "NonActivatingExample",
    "Rubric",
    "Source",
    "SteeredAnswers",
    "evaluate",
    "rated_items",
    "repeat",
    "schema",
    "shipped_rubrics",
    "write_shard",
]
