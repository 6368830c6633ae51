"""The divergence of next-token distributions at pairs, against transformers' own logits."""

from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, Gemma3TextConfig

from sparsify_crosscoder.harvest import divergence
from sparsify_crosscoder.harvest.divergence import divergence_columns
from sparsify_crosscoder.harvest.harvest import run_harvest
from sparsify_crosscoder.harvest.heads import Head
from sparsify_crosscoder.harvest.hookpoints import try_hookpoint
from sparsify_crosscoder.harvest.model_files import ModelError
from sparsify_crosscoder.harvest.placement import Placement
from sparsify_crosscoder.harvest.source import Source
from sparsify_crosscoder.harvest.sources import load_sources
from tests.support.models import save_tiny_model, tiny_config, tiny_model
from tests.support.tokenizers import byte_level_tokenizer, metaspace_tokenizer
from tests.support.windows import random_windows

BYTES = byte_level_tokenizer()
HOOKPOINTS = {"llama": "layers.1", "gemma3": "layers.2", "gpt2": "h.1", "cohere": "layers.1"}


def language_model(kind, seed):
    """A tiny model of a family whose logits are capped (Gemma 3) or scaled (Cohere)."""
    if kind == "gemma3":
        settings = tiny_config("gemma3").to_dict() | {"final_logit_softcapping": 2.0}
        config = Gemma3TextConfig(**settings)
    elif kind == "cohere":
        settings = tiny_config("llama").to_dict()
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        kept = {name: settings[name] for name in names}
        config = CohereConfig(
            **kept, num_attention_heads=2, logit_scale=0.3, bos_token_id=0, eos_token_id=0
        )
    else:
        return tiny_model(kind, seed=seed, causal_lm=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for weight in model.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.2)
    return model.eval().requires_grad_(False)


def source_of(model, kind, tokenizer=BYTES):
    base = model.base_model
    width = try_hookpoint(base, HOOKPOINTS[kind]).shape[2]
    return Source(
        kind, HOOKPOINTS[kind], base, tokenizer, width, causal=True, head=Head(model, kind)
    )


def expected(models, windows):
    """The columns by one whole forward for each window and model, in float64."""
    columns = {name: [] for name in ("kl_1_0", "kl_0_1", "loglik_0", "loglik_1")}
    for row in windows:
        found = [
            model(torch.tensor([row[f"input_ids_{s}"]])).logits[0].double().log_softmax(-1)
            for s, model in enumerate(models)
        ]
        places = [torch.tensor(row[f"pairs_{s}"]) for s in (0, 1)]
        a, b = (x[place] for x, place in zip(found, places, strict=True))
        columns["kl_1_0"] += (b.exp() * (b - a)).sum(-1).tolist()
        columns["kl_0_1"] += (a.exp() * (a - b)).sum(-1).tolist()
        for s, (x, place) in enumerate(zip(found, places, strict=True)):
            ids = row[f"input_ids_{s}"]
            bounds = [*place.tolist(), int(place[-1])]
            columns[f"loglik_{s}"] += [
                sum(float(x[t - 1, ids[t]]) for t in range(begin + 1, end + 1))
                for begin, end in pairwise(bounds)
            ]
    return {name: torch.tensor(values) for name, values in columns.items()}


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2", "cohere"])
@pytest.mark.parametrize("same_tokens", [True, False])
def test_columns_are_those_of_whole_forwards(kind, same_tokens, monkeypatch):
    monkeypatch.setattr(divergence, "_POSITIONS_AT_ONCE", 7)
    models = [language_model(kind, seed) for seed in (0, 1)]
    sources = [source_of(model, kind) for model in models]
    windows = random_windows(9, same_tokens=same_tokens)
    found = run_harvest(sources, windows, range(len(windows)), batch_size=4)
    wanted = expected(models, windows)
    assert set(found.columns) == set(wanted) == set(divergence_columns(sources))
    for name, values in found.columns.items():
        assert values.dtype == torch.float32
        assert torch.allclose(values, wanted[name], rtol=1e-4, atol=1e-5), name
    assert found.columns["kl_1_0"].min() > 1e-3


def test_activations_do_not_change_with_the_columns_beside_them():
    sources = [source_of(language_model("llama", seed), "llama") for seed in (0, 1)]
    windows = random_windows(5)
    rows = range(len(windows))
    whole = run_harvest(sources, windows, rows, batch_size=4)
    for source in sources:
        source.head = None
    alone = run_harvest(sources, windows, rows, batch_size=4)
    assert not alone.columns
    assert all(map(torch.equal, whole.activations, alone.activations))


def test_a_model_does_not_diverge_from_itself():
    model = language_model("gemma3", 0)
    twin = language_model("gemma3", 0)
    for other in (model, twin):
        sources = [source_of(model, "gemma3"), source_of(other, "gemma3")]
        windows = random_windows(6, same_tokens=True)
        columns = run_harvest(sources, windows, range(6), batch_size=4).columns
        assert not columns["kl_1_0"].any() and not columns["kl_0_1"].any()
        assert torch.equal(columns["loglik_0"], columns["loglik_1"])


def test_without_a_common_vocabulary_only_likelihoods_are_kept():
    models = [language_model("llama", 0), tiny_model("gpt2", causal_lm=True, vocab_size=96)]
    sources = [source_of(models[0], "llama"), source_of(models[1], "gpt2")]
    windows = random_windows(6, vocab_size=96)
    columns = run_harvest(sources, windows, range(6), batch_size=4).columns
    assert set(columns) == {"loglik_0", "loglik_1"} == set(divergence_columns(sources))
    ids, pairs = windows[0]["input_ids_1"], windows[0]["pairs_1"]
    logits = models[1](torch.tensor([ids])).logits[0].log_softmax(-1)
    first = sum(float(logits[t - 1, ids[t]]) for t in range(pairs[0] + 1, pairs[1] + 1))
    assert columns["loglik_1"][0] == pytest.approx(first, rel=1e-4)
    ends = torch.tensor(windows["num_pairs"][:]).cumsum(0) - 1
    assert not columns["loglik_0"][ends].any()


def test_no_more_logits_exist_than_those_of_some_positions(monkeypatch):
    monkeypatch.setattr(divergence, "_LOGITS_AT_ONCE", 5 * 128)
    sources = [source_of(language_model("llama", seed), "llama") for seed in (0, 1)]
    most = 0
    for source in sources:
        whole = source.head

        def counted(hidden, whole=whole):
            nonlocal most
            most = max(most, len(hidden))
            return whole(hidden)

        counted.width, counted.num_tokens = whole.width, whole.num_tokens
        source.head = counted
    run_harvest(sources, random_windows(8), range(8), batch_size=4)
    assert most == 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    headless = tiny_model("llama", vocab_size=len(BYTES))
    headless.save_pretrained(folder / "headless")
    BYTES.save_pretrained(folder / "headless")
    return {
        "bytes": str(save_tiny_model(folder / "bytes", "llama", BYTES)),
        "also bytes": str(save_tiny_model(folder / "also", "gpt2", BYTES)),
        "pieces": str(save_tiny_model(folder / "pieces", "gemma3", metaspace_tokenizer())),
        "headless": str(folder / "headless"),
    }


@pytest.mark.parametrize(
    ("second", "heads", "loaded"),
    [
        ("also bytes", "auto", True),
        ("also bytes", "off", False),
        ("pieces", "auto", False),
        ("pieces", "on", True),
        ("headless", "auto", False),
    ],
)
def test_heads_are_loaded_where_they_are_of_use(folders, second, heads, loaded):
    names = [folders["bytes"], folders[second]]
    sources = load_sources(names, placement=Placement("cpu"), dtype="float32", heads=heads)
    assert [source.head is not None for source in sources] == [loaded, loaded]
    without = load_sources(names, placement=Placement("cpu"), dtype="float32")
    for source, plain in zip(sources, without, strict=True):
        assert type(source.model) is type(plain.model)
        assert source.hookpoint == plain.hookpoint
        assert source.model.state_dict().keys() == plain.model.state_dict().keys()


def test_a_model_without_a_head_is_refused_where_heads_have_to_be(folders):
    with pytest.raises(ModelError, match=r"headless.* is none. Leave --kl off"):
        load_sources(
            [folders["bytes"], folders["headless"]], placement=Placement("cpu"), heads="on"
        )
