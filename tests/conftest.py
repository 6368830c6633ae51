"""What tests of several packages share: a small trained run, a finished demo, installed plugins."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.demo import DemoRun, convert_models, lend_models, once, run_demo
from tests.support.plugins import modules_of, write_plugin

# What loads torch is imported where it is used: xdist's first process reads this file too.

_MANY_MODULES = 100
_modules_when_frozen = 0


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests go to one worker of xdist, which makes what they share.

    Slow ones share the cores with others, so that a limit for quick ones says nothing.
    """
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1800))


def pytest_runtest_setup() -> None:
    """Modules stay, so that collecting garbage need not look through theirs again and again."""
    global _modules_when_frozen
    if len(sys.modules) >= _modules_when_frozen + _MANY_MODULES:
        gc.collect()
        gc.freeze()
        _modules_when_frozen = len(sys.modules)


@pytest.fixture(scope="session")
def of_all_workers(tmp_path_factory) -> Path:
    """The folder for what one worker of xdist makes for the others too."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def converted(of_all_workers) -> tuple[Path, DemoRun]:
    """The folder of the demo's two models, and how they were converted."""
    return once(of_all_workers / "demo-models", convert_models)


@pytest.fixture(scope="session")
def demo_models(converted) -> Path:
    """The folder of the demo's two models."""
    return converted[0]


@pytest.fixture(scope="session")
def finished_demo(demo_models, of_all_workers) -> tuple[Path, DemoRun]:
    """The folder of a finished demo, and how it ran."""

    def run(folder: Path) -> DemoRun:
        lend_models(demo_models, folder)
        return run_demo(folder, "--no_audit")

    return once(of_all_workers / "demo", run)


@pytest.fixture(scope="session")
def demo(finished_demo) -> tuple[Path, str]:
    """The folder of a finished demo, and what it printed."""
    folder, done = finished_demo
    return folder, done.stdout


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A trained DFC over two tiny models with tokenizers of different kinds, and its store."""
    from sparsify_crosscoder.commands import train
    from tests.support.models import save_tiny_model
    from tests.support.tokenizers import SENTENCES, byte_level_tokenizer, metaspace_tokenizer

    folder = tmp_path_factory.mktemp("run")
    save_tiny_model(folder / "llama", "llama", byte_level_tokenizer(), width=24)
    save_tiny_model(folder / "gpt2", "gpt2", metaspace_tokenizer(bos=True), width=32)
    texts = [" ".join(s.format(n=n * 7, m=n + 1900) for s in SENTENCES) for n in range(300)]
    (folder / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    options = "--hookpoints layers.1 h.2 --num_latents 64 --k 4 --pairs_per_step 128 --lr 1e-3"
    options += " --max_steps 30 --ctx_len 64 --run_name run --log_to_wandb False --device cpu"
    places = ["--save_dir", str(folder), "--cache", str(folder / "store")]
    models = [str(folder / "llama"), str(folder / "texts.txt"), "--partners", str(folder / "gpt2")]
    train.main([*models, "--arch", "dfc", *options.split(), *places])
    return folder / "run"


@pytest.fixture(scope="session")
def twins(tmp_path_factory):
    """A trained DFC over a tiny model and its fine-tune, and its store."""
    from sparsify_crosscoder.commands import train
    from tests.support.models import save_twins
    from tests.support.tokenizers import SENTENCES

    folder = tmp_path_factory.mktemp("twins")
    save_twins(folder)
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    texts = [" ".join(words[(n * 7 + i * i) % len(words)] for i in range(30)) for n in range(200)]
    (folder / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    options = "--hookpoints layers.1 layers.1 --num_latents 64 --k 4 --pairs_per_step 128 --lr 1e-3"
    options += " --max_steps 30 --ctx_len 64 --run_name run --log_to_wandb False --device cpu"
    places = ["--save_dir", str(folder), "--cache", str(folder / "store")]
    models = [str(folder / "base"), str(folder / "texts.txt"), "--partners", str(folder / "tuned")]
    train.main([*models, "--arch", "dfc", *options.split(), *places])
    return folder / "run"


@pytest.fixture
def plugin(tmp_path, monkeypatch) -> Iterator[Callable[..., Path]]:
    """Installs a distribution for one test: `write_plugin` without its first argument.

    Returns the folder to put on the PYTHONPATH of other processes. What the test registers in
    tables of the packages under test stays there: it undoes that itself.
    """

    installed: list[set[str]] = []

    def install(name: str, files: dict[str, str], *args, **kwargs) -> Path:
        site = write_plugin(tmp_path / "plugins" / name, name, files, *args, **kwargs)
        monkeypatch.syspath_prepend(str(site))
        installed.append(modules_of(files))
        return site

    yield install
    tops = set().union(*installed)
    for module in [name for name in sys.modules if name.split(".")[0] in tops]:
        del sys.modules[module]
