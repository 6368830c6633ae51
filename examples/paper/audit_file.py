"""An audit's YAML file as the options of its run and those of its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from delphi_adapters.audit.pipeline import options_by_name
from delphi_adapters.audit.stage_list import make_stages
from delphi_adapters.commands.audit import read_options
from sparsify_crosscoder.runs.config import RunConfig
from sparsify_crosscoder.runs.options import parse_run_config


class AuditFile(NamedTuple):
    """What a file says; options that it leaves out have their defaults."""

    run: RunConfig
    """Options of the training run."""

    audit: SimpleNamespace
    """The audit's own, by their names."""


def read_audit_file(path: Path) -> AuditFile:
    """Read a file as the audit itself does.

    Options that do not exist, or values that make no sense, end the process with 2.
    """
    asked = read_options(["--config", str(path)])
    config = asked.config
    options = options_by_name(config, make_stages(config))
    model, partner = config.models
    argv = [model, config.dataset, "--partners", partner, *config.train]
    return AuditFile(parse_run_config(argv), SimpleNamespace(until=asked.until, **options))
