"""`python -m delphi_adapters SUBCOMMAND`."""

from __future__ import annotations

from sparsify_crosscoder.subcommands import dispatch

COMMANDS = {
    "audit": ("delphi_adapters.audit.audit_command", "main", "from two models to a report"),
    "explain": ("delphi_adapters.explain_command", "main", "explain, flag and score latents"),
    "rubric": (
        "delphi_adapters.judges.rubric_command",
        "main",
        "rate what a steered latent makes models say",
    ),
    "reliability": (
        "delphi_adapters.judges.reliability_command",
        "main",
        "compare ratings with second ones and with people's",
    ),
}


def main() -> None:
    """Run a subcommand; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    dispatch("python -m delphi_adapters", COMMANDS)


if __name__ == "__main__":
    main()
