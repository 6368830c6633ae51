"""`python -m delphi_adapters SUBCOMMAND`."""

from __future__ import annotations

from sparsify_crosscoder.command_line import dispatch

COMMANDS = {
    "audit": ("delphi_adapters.commands.audit", "main", "from two models to a report"),
    "explain": ("delphi_adapters.commands.explain", "main", "explain, flag and score latents"),
    "rubric": (
        "delphi_adapters.commands.rubric",
        "main",
        "rate what a steered latent makes models say",
    ),
    "reliability": (
        "delphi_adapters.commands.reliability",
        "main",
        "compare ratings with second ones and with people's",
    ),
    "serve": ("delphi_adapters.commands.serve", "main", "a page on which both models answer"),
}


def main() -> None:
    """Run a subcommand; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    dispatch("python -m delphi_adapters", COMMANDS)


if __name__ == "__main__":
    main()
