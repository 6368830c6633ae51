"""What tests share: a trained run, a server with a key, and delays that are not waited."""

import asyncio
import sys
from pathlib import Path

import pytest
from models_for_tests import save_tiny_model
from tokenizers_for_tests import SENTENCES, byte_level_tokenizer, metaspace_tokenizer

from sparsify_crosscoder import cli

# This folder has the name of the real package, so that its modules cannot be imported by it.
sys.path.append(str(Path(__file__).parent))
from messages_server import KEY, MessagesServer


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server on the loopback, and a key for it in the environment."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # the SDK also looks for a profile there
    with MessagesServer() as server:
        yield server


@pytest.fixture
def sleeps():
    """Seconds that `sleep` was asked to wait."""
    return []


@pytest.fixture
def sleep(sleeps):
    """Notes delays instead of waiting."""

    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        await asyncio.sleep(0)

    return sleep


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A trained DFC over two tiny models with tokenizers of different kinds, and its store."""
    folder = tmp_path_factory.mktemp("run")
    save_tiny_model(folder / "llama", "llama", byte_level_tokenizer(), width=24)
    save_tiny_model(folder / "gpt2", "gpt2", metaspace_tokenizer(bos=True), width=32)
    texts = [" ".join(s.format(n=n * 7, m=n + 1900) for s in SENTENCES) for n in range(300)]
    (folder / "texts.txt").write_text("\n".join(texts))
    options = "--hookpoints layers.1 h.2 --num_latents 64 --k 4 --pairs_per_step 128 --lr 1e-3"
    options += " --max_steps 30 --ctx_len 64 --run_name run --log_to_wandb False --device cpu"
    places = ["--save_dir", str(folder), "--cache", str(folder / "store")]
    models = [str(folder / "llama"), str(folder / "texts.txt"), "--partners", str(folder / "gpt2")]
    cli.run([*models, "--arch", "dfc", *options.split(), *places])
    return folder / "run"
