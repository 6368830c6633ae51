"""`python -m delphi_adapters serve RUN_OR_AUDIT`: a page on which both models answer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsify_crosscoder.command_line import run_command
from sparsify_crosscoder.command_options import HubOptions, group, option
from sparsify_crosscoder.endings import UsageError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Options:
    """Open a page in the browser's reach: type a sentence and see both models' tokens with their
    latents; click a latent and see where it fires; steer both models with it. No judge is asked."""

    folder: Path = option(positional=True)
    """run folder, or an audit's"""

    port: int = 7860
    """where the page is ({default})"""

    host: str = LOOPBACK[0]
    """address to listen on; any but a loopback one lets others use the models ({default})"""

    pairs: int = 20_000
    """pairs to search for contexts and largest activations ({default:,})"""

    device: str | None = None
    """device to run on"""

    hub: HubOptions = group(HubOptions)

    json: Path | None = None
    """also write the page's address to this file when it ends"""


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_command("python -m delphi_adapters serve", Options, show, argv, goes_on="the page is gone")


def show(options: Options) -> dict[str, Any]:
    """Serve the page until it is interrupted; the models load once it can be opened."""
    _check(options)
    from ..explorer.page import build_page

    loading: Future[Any] = Future()
    page = build_page(loading, f"{options.folder.resolve().name}: what two models say")
    try:
        _, address, _ = page.queue(default_concurrency_limit=4).launch(
            server_name=options.host,
            server_port=options.port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            footer_links=[],
        )
    except OSError as error:
        raise UsageError(
            f"Port {options.port} of {options.host} cannot be used; name another with --port."
        ) from error
    try:
        print(f"The page: {address} (Ctrl-C ends it). The models are loading ...", flush=True)
        if options.host not in LOOPBACK:
            print(
                f"warning: everyone who reaches {options.host}:{options.port} can use the models "
                "and read the run's texts; there is no password.",
                file=sys.stderr,
                flush=True,
            )
        loading.set_result(_explorer(options))
        print("The models are loaded.", flush=True)
        page.block_thread()
    except BaseException as error:
        if not loading.done():
            loading.set_exception(error)
        raise
    finally:
        page.close(verbose=False)
    return {"address": address}


def _check(options: Options) -> None:
    if not 0 < options.port < 65536:
        raise UsageError(f"--port is between 1 and 65535, not {options.port}.")
    if options.pairs < 1:
        raise UsageError(f"--pairs must be at least 1, got {options.pairs}.")
    if not any((options.folder / name).exists() for name in ("config.json", "audit.json")):
        raise FileNotFoundError(
            f"'{options.folder}' holds no run and no audit: name a folder that `train` or `audit` "
            "has finished."
        )


def _explorer(options: Options) -> Any:
    from ..explorer.audited import open_run
    from ..explorer.explorer import Explorer

    run, audited = open_run(options.folder, **options.hub.access)
    return Explorer(run, audited, pairs=options.pairs, device=options.device)
