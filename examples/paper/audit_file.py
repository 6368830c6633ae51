"""An audit's YAML file as the options of its run and those of its own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from delphi_adapters.audit.options import read_options
from sparsify_crosscoder.runs.config import RunConfig
from sparsify_crosscoder.runs.options import parse_run_config


class AuditFile(NamedTuple):
    """What a file says; options that it leaves out have their defaults."""

    run: RunConfig
    """Options of the training run."""

    audit: argparse.Namespace
    """The audit's own."""


def read_audit_file(path: Path) -> AuditFile:
    """Read a file as the audit itself does.

    Options that do not exist, or values that make no sense, end the process with 2.
    """
    audit = read_options(["--config", str(path)])
    model, partner = audit.models
    argv = [model, str(audit.dataset), "--partners", partner, *audit.train]
    return AuditFile(parse_run_config(argv), audit)
