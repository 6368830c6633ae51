"""What users do not import by name, but what golden files hold."""

import json
from collections.abc import Sequence
from typing import Any

from delphi_adapters.audit.options import read_options
from delphi_adapters.audit.plan import NEEDS, WHAT
from delphi_adapters.audit.stage_table import stage_table
from delphi_adapters.audit.workspace import Workspace
from delphi_adapters.commands.audit import _asked
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
    args = read_options(argv)
    work, table = Workspace(args), stage_table()
    stages = {
        name: {"what": WHAT[name], "from": list(needs), "options": table[name].inputs(work)}
        for name, needs in NEEDS.items()
    }
    return json.loads(json.dumps({"options": _asked(args)["options"], "stages": stages}))
