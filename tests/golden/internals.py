"""What users do not import by name, but what golden files hold."""

import json
from collections.abc import Sequence
from typing import Any

from delphi_adapters.audit.pipeline import asked_for
from delphi_adapters.audit.stage import Context
from delphi_adapters.audit.stage_list import make_stages
from delphi_adapters.commands.audit import read_options
from delphi_adapters.explaining.categories import CategoryJudge
from delphi_adapters.explaining.features import schema
from delphi_adapters.explaining.flagging import FlaggingExplainer
from delphi_adapters.explaining.interpretability import InterpretabilityFilter
from delphi_adapters.judging.exclusivity import ExclusivityJudge, SteeredAnswers
from delphi_adapters.judging.reliability import rated_items, repeat
from delphi_adapters.judging.rubric_runs import Answers, evaluate
from delphi_adapters.judging.rubrics import Rubric
from delphi_adapters.judging.rubrics import shipped as shipped_rubrics
from sparsify_crosscoder.harvest.source import Source
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
    "audit_inputs",
    "evaluate",
    "rated_items",
    "repeat",
    "schema",
    "shipped_rubrics",
    "write_shard",
]


def audit_inputs(argv: Sequence[str]) -> dict[str, Any]:
    """What an audit keeps of its options, and what each of its stages is made from."""
    config = read_options(argv).config
    ctx = Context(config, make_stages(config))
    stages = {
        one.name: {"what": one.what, "from": list(one.needs), "options": one.inputs(ctx)}
        for one in ctx.stages
    }
    options = asked_for(config, ctx.stages)["options"]
    return json.loads(json.dumps({"options": options, "stages": stages}))
