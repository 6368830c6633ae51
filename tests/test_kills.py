"""`kill -9` at random moments of a harvest and of training, until all is done: the same bytes."""

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch

from tests.support.models import save_tiny_model
from tests.support.tokenizers import byte_level_tokenizer, metaspace_tokenizer

KILLS = 10
HOOKPOINTS = ["layers.3", "h.3"]
NOT_RESULTS = ("trainer.json", "config.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    save_tiny_model(folder / "llama", "llama", byte_level_tokenizer(), width=32)
    save_tiny_model(folder / "gpt2", "gpt2", metaspace_tokenizer(bos=True), width=24)
    with open(folder / "texts.jsonl", "w", encoding="utf-8") as file:
        for n in range(600):
            text = f"In {n} the river turned north; by {n * 7 % 611} it had found the sea again. "
            file.write(json.dumps({"text": text * 3}) + "\n")
    return folder


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have everything imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["sparsify_crosscoder.commands.train", "transformers.models.auto"]
    )
    return context


def run_command(folder: str, argv: list[str]) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": f"{folder}/cache"}
    os.chdir(folder)
    with open("output.txt", "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from sparsify_crosscoder.__main__ import main

    main(argv)


def run_killed(processes, folder: Path, argv: list[str], seconds: float | None) -> bool:
    """Run a command, kill it after so many seconds; whether it was killed before its end."""
    process = processes.Process(target=run_command, args=(str(folder), argv))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return True
    assert process.exitcode == 0, (folder / "output.txt").read_text(encoding="utf-8")
    return False


def contents(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def options(folder: Path) -> list[str]:
    return [
        *("--partners", str(folder / "gpt2"), "--hookpoints", *HOOKPOINTS, "--device", "cpu"),
        *("--batch_size", "4", "--ctx_len", "48"),
    ]


def harvest(folder: Path, store: str) -> list[str]:
    texts = [str(folder / "llama"), str(folder / "texts.jsonl")]
    return ["harvest", *texts, *options(folder), "--cache", store, "--shard_pairs", "1500"]


def kill_until_done(processes, folder, argv, seconds: float, moments: random.Random) -> int:
    """Kill a command at random moments and start it again until it ends; how often it was."""
    kills = 0
    while run_killed(processes, folder, argv(), moments.uniform(0.1, seconds)):
        kills += 1
    return kills


def kill_often(processes, folder, name: str, argv, result, begin_again) -> None:
    """Kill a command `KILLS` times, in as many attempts as that takes: every one ends alike."""
    started = time.monotonic()
    assert not run_killed(processes, folder, argv(), None)
    seconds = time.monotonic() - started
    expected = result()
    moments = random.Random(name)
    kills = 0
    while kills < KILLS:
        begin_again()
        kills += kill_until_done(processes, folder, argv, seconds, moments)
        assert result() == expected


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_harvest_killed_at_random_moments_ends_with_the_same_bytes(processes, folder):
    store = folder / "store"
    run_killed(processes, folder, harvest(folder, "first"), None)  # the texts are aligned once
    kill_often(
        processes,
        folder,
        "harvest",
        lambda: harvest(folder, "store"),
        lambda: contents(store),
        lambda: shutil.rmtree(store),
    )
    assert contents(store) == contents(folder / "first")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_training_killed_at_random_moments_ends_with_the_same_bytes(processes, folder):
    run_killed(processes, folder, harvest(folder, "pairs"), None)
    run = folder / "checkpoints" / "run"

    def train() -> list[str]:
        argv = ["train", str(folder / "llama"), "pairs", "--arch", "dfc", "--run_name", "run"]
        argv += ["--num_latents", "256", "--k", "8", "--pairs_per_step", "256", "--epochs", "8"]
        argv += ["--save_every", "7", "--log_to_wandb", "False", "--device", "cpu"]
        return argv + ["--resume"] * (run / "config.json").exists()

    def result() -> dict[str, object]:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        kept = contents(run / "+".join(HOOKPOINTS)) | contents(run / "checkpoints")
        # The time that training took, and whether the command said --resume.
        kept = {name: h for name, h in kept.items() if Path(name).name not in NOT_RESULTS}
        (state,) = (name for name in kept if name.endswith("rank_0_state.pt"))
        # Equal strings that are not one object are written twice.
        counts = torch.load(run / "checkpoints" / state, weights_only=True)
        kept[state] = repr({key: counts[key] for key in sorted(counts)})
        return kept | {"fve": summary["fve"], "pairs": summary["pairs"]}

    kill_often(processes, folder, "training", train, result, lambda: shutil.rmtree(run))
