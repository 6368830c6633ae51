"""A crosscoder over two tiny models on real text, cached and read by delphi."""

import copy

import numpy as np
import pytest
import torch

from delphi_adapters.delphi.compat import TokenwiseTokenizer
from delphi_adapters.delphi.crosscoder_cache import (
    WINDOWS_PER_PART,
    CacheOptions,
    CrosscoderLatentCache,
    open_dataset,
)
from delphi_adapters.delphi.run_text import RunText, delphi_hookpoint
from sparsify_crosscoder import Crosscoder
from sparsify_crosscoder.store.normalization import within_norm

from delphi.clients.client import Client, Response  # isort: skip
from delphi.config import ConstructorConfig, SamplerConfig  # isort: skip
from delphi.explainers import DefaultExplainer  # isort: skip

CTX = 32


@pytest.fixture(scope="module")
def coder(run):
    return Crosscoder.load_one(run)


@pytest.fixture(scope="module")
def text(run):
    return RunText.of_run(run, torch.device("cpu"))


def configs():
    sampler = SamplerConfig(n_examples_train=5, n_examples_test=5, train_type="top")
    return sampler, ConstructorConfig(example_ctx_len=CTX, min_examples=5, n_non_activating=5)


def dense_rows(coder, text, source):
    """Every latent at every token of the text, as delphi would have it: `[rows, CTX, M]`."""
    parts = []
    for start in range(0, len(text.windows), WINDOWS_PER_PART):
        stop = min(start + WINDOWS_PER_PART, len(text.windows))
        raw = text.read(start, stop)
        code = coder.encode_sparse(raw).to_dense()
        code[~within_norm(raw, 2.0, medians=coder.median_norms)] = 0
        pair = 0
        for window in text.windows.select(range(start, stop)):
            at_tokens = torch.zeros(len(window[f"input_ids_{source}"]), coder.num_latents)
            places = window[f"pairs_{source}"]
            at_tokens[places] = code[pair : pair + len(places)].detach()
            pair += len(places)
            parts.append(at_tokens)
    flat = torch.cat(parts)
    return flat[: len(flat) // CTX * CTX].view(-1, CTX, coder.num_latents)


@pytest.mark.parametrize("source", [0, 1])
def test_delphi_reads_every_activation_at_its_token(coder, text, tmp_path, source):
    cache = CrosscoderLatentCache(
        coder,
        text,
        tmp_path,
        source=source,
        options=CacheOptions(ctx_len=CTX, n_splits=3),
        name="x",
    )
    statistics = cache.run(show_progress=False)
    cache.verify()
    expected = dense_rows(coder, text, source)
    ids = np.concatenate(text.windows[f"input_ids_{source}"])[: expected[..., 0].numel()]
    dataset = cache.dataset(*configs())
    assert dataset.tokens.flatten().tolist() == ids.tolist()
    seen = 0
    for buffer in dataset.buffers:
        for data in buffer:
            rows, positions = data.activation_data.locations[:, :2].T
            found = torch.zeros(expected.shape[:2])
            found[rows, positions] = data.activation_data.activations.float()
            here = expected[..., data.latent.latent_index]
            torch.testing.assert_close(found, here.half().float(), rtol=0, atol=2e-5)
            seen += 1
    assert seen == int((expected.flatten(0, 1) > 1e-5).any(0).sum()) > 10
    assert statistics.firings.sum() > 1000
    best = int(statistics.max_activation.argmax())
    window, pair = statistics.context_pairs[best, 0].tolist()
    counts = text.windows["num_pairs"]
    raw = text.read(window, window + 1)
    assert coder.encode_sparse(raw).to_dense()[pair, best] == statistics.max_activation[best]
    assert pair < counts[window]


def test_a_cache_that_was_stopped_goes_on(coder, text, tmp_path):
    whole = CrosscoderLatentCache(
        coder, text, tmp_path / "whole", options=CacheOptions(ctx_len=CTX), name="x"
    )
    whole.run(show_progress=False)
    stopped = CrosscoderLatentCache(
        coder, text, tmp_path / "stopped", options=CacheOptions(ctx_len=CTX), name="x"
    )

    class Stop(Exception):
        pass

    reads = []

    def read(start, stop):
        if len(reads) == 2:
            raise Stop
        reads.append(start)
        return text.read(start, stop)

    interrupted = RunText(**{**vars(text), "read": read})
    stopped.text = interrupted
    with pytest.raises(Stop):
        stopped.run(show_progress=False)
    again = CrosscoderLatentCache(
        coder, text, tmp_path / "stopped", options=CacheOptions(ctx_len=CTX), name="x"
    )
    assert again.writer.num_parts == 2
    again.run(show_progress=False)
    for file in (tmp_path / "whole").rglob("*.safetensors"):
        other = tmp_path / "stopped" / file.relative_to(tmp_path / "whole")
        assert file.read_bytes() == other.read_bytes()
    with pytest.raises(ValueError, match="coder"):
        CrosscoderLatentCache(
            coder, text, tmp_path / "stopped", options=CacheOptions(ctx_len=CTX), name="y"
        )
    unnamed = CrosscoderLatentCache(
        coder, text, tmp_path / "stopped", options=CacheOptions(ctx_len=CTX)
    )
    assert unnamed.writer.finished
    other = copy.deepcopy(coder)
    with torch.no_grad():
        other.b_dec[0] += 0.1
    with pytest.raises(ValueError, match="weights"):
        CrosscoderLatentCache(
            other, text, tmp_path / "stopped", options=CacheOptions(ctx_len=CTX), name="x"
        )


def test_prompts_mark_the_tokens_and_would_not_with_a_plain_tokenizer(coder, text, tmp_path):
    cache = CrosscoderLatentCache(
        coder, text, tmp_path, options=CacheOptions(ctx_len=CTX), name="x"
    )
    statistics = cache.run(show_progress=False)
    often = torch.from_numpy(statistics.firings).topk(3).indices
    explainer = DefaultExplainer(Silent("none"))

    def prompts(dataset):
        return [explainer._build_prompt(r.train)[-1]["content"] for r in dataset if r.train]

    marked = prompts(cache.dataset(*configs(), latents=often))
    assert len(marked) == 3
    assert all("<<" in prompt and ">>" in prompt for prompt in marked)
    dataset = open_dataset(
        tmp_path, text.hookpoints[0], text.tokenizers[0], *configs(), latents=often
    )
    assert isinstance(dataset.tokenizer, TokenwiseTokenizer)
    dataset.tokenizer = text.tokenizers[0]
    # It marks characters instead, where there are as many.
    unmarked = prompts(dataset)
    counts = [[p.count("<<") for p in some] for some in (marked, unmarked)]
    assert all(few < many for many, few in zip(*counts, strict=True))
    assert 0 in counts[1]


class Silent(Client):
    async def generate(self, prompt, **kwargs):
        return Response("")


def test_a_plain_sae_is_cached_on_its_own_models_tokens(run, coder, text, tmp_path):
    sae = coder.export_sae(1, tmp_path / "sae")
    cache = CrosscoderLatentCache(
        sae, text, tmp_path / "cache", source=1, options=CacheOptions(ctx_len=CTX), name="sae"
    )
    statistics = cache.run(show_progress=False)
    cache.verify()
    assert statistics.firings.sum() > 0
    assert (tmp_path / "cache" / text.hookpoints[1] / "config.json").exists()


def test_hookpoints_have_the_names_of_the_whole_models(text, run):
    assert list(text.hookpoints) == ["model.layers.1", "transformer.h.2"]
    assert delphi_hookpoint(str(run.parent / "llama"), "layers.0") == "model.layers.0"


def test_a_source_that_there_is_not_is_refused(coder, text, tmp_path):
    with pytest.raises(ValueError, match=r"sources 0\.\.1"):
        CrosscoderLatentCache(coder, text, tmp_path, source=2)


def test_contexts_show_the_strongest_places_in_both_models_tokens(coder, text, tmp_path):
    cache = CrosscoderLatentCache(
        coder, text, tmp_path, options=CacheOptions(ctx_len=CTX), name="x"
    )
    statistics = cache.run(show_progress=False)
    latent = int(statistics.firings.argmax())
    contexts = cache.contexts(latent, count=4)
    assert [c.activation for c in contexts] == sorted(c.activation for c in contexts)[::-1]
    assert contexts[0].activation == pytest.approx(statistics.max_activation[latent])
    windows = [text.windows[int(w)] for w in statistics.context_pairs[latent, :4, 0]]
    assert [c.text_id for c in contexts] == [int(window["text_id"]) for window in windows]
    for context, window, (_, pair) in zip(
        contexts, windows, statistics.context_pairs[latent], strict=False
    ):
        for s, shown in enumerate(context.texts):
            token = window[f"input_ids_{s}"][window[f"pairs_{s}"][pair]]
            marked = text.tokenizers[s].decode([token]).replace("\n", "⏎")
            assert shown.count("«") == 1 and f"«{marked}»" in shown
    dead = statistics.dead.nonzero()[0]
    assert all(cache.contexts(int(i)) == [] for i in dead)
