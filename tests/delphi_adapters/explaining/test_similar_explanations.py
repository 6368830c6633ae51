"""Explanations that are alike are found, and confirmed where their latents are active together."""

import logging
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from delphi_adapters.delphi.latent_cache import CacheLayout, LatentCacheWriter
from delphi_adapters.explaining import similar_explanations
from delphi_adapters.explaining.flagging import MISSING, UNPARSED
from delphi_adapters.explaining.similar_explanations import (
    THRESHOLDS,
    SimilarPair,
    activation_correlations,
    confirm,
    embed,
    markdown,
    similar_pairs,
)
from sparsify_crosscoder.crosscoders import SparseCode
from tests.support.models import save_tiny_model
from tests.support.tokenizers import byte_level_tokenizer

ALIKE = [
    ("Scores and results of football matches.", "Football match results and goal scores."),
    ("Closing brackets of function calls.", "Brackets that close function calls in code."),
    ("Racial slurs aimed at ethnic groups.", "Slurs and insults against ethnic groups."),
    ("Percentage changes of share prices.", "Share prices and their percentage changes."),
    ("Claims of voter fraud in elections.", "Voter fraud and stolen election claims."),
]
ALONE = [
    "Text describing the plot of a film, particularly how it ends.",
    "Text describing symptoms of skin diseases and their treatment.",
    "Text describing the installation of kitchen furniture.",
    "Text describing levels and weapons in video games.",
    "Instructions for knitting patterns, particularly stitches.",
    "Instructions for building electronic circuits.",
    "References to medieval kings and their battles.",
    "References to genes and proteins in cancer research.",
    "Phrases that express thanks at the end of letters.",
    "Phrases that introduce a list of reasons in essays.",
    "Tokens in URLs, particularly domain names.",
    "Tokens that name cities in Brazil.",
]
WORDS = ["river", "boat", "sail", "harbour", "wind", "the", "of", "x", "7", "Text", "describing"]


def sides() -> tuple[dict[int, str], dict[int, str]]:
    """Explanations of latents 0.. and 100..; those of i and 100 + i are alike."""
    first = [one for one, _ in ALIKE] + ALONE[::2]
    second = [other for _, other in ALIKE] + ALONE[1::2]
    return dict(enumerate(first)), dict(enumerate(second, 100))


def test_what_says_the_same_is_found_and_nothing_else():
    first, second = sides()
    pairs = similar_pairs(first, second, method="tfidf")
    assert sorted(pair.latents for pair in pairs) == [(i, 100 + i) for i in range(len(ALIKE))]
    for pair in pairs:
        assert pair.explanations == ALIKE[pair.latents[0]]
        assert THRESHOLDS["tfidf"] <= pair.similarity < 1
        assert (pair.method, pair.correlation, pair.confirmed) == ("tfidf", None, None)
    similarities = [pair.similarity for pair in pairs]
    assert similarities == sorted(similarities, reverse=True)


def test_a_known_similarity():
    """Two words of two documents: "river" is in both (idf 1), the others and their pairs in one."""
    [pair] = similar_pairs({1: "river boat"}, {2: "river wind"}, threshold=0.01, method="tfidf")
    rare = 1 + np.log(3 / 2)
    assert pair.similarity == pytest.approx(1 / (1 + 2 * rare**2), abs=1e-6)


def test_equal_explanations_have_similarity_one_and_may_be_in_several_pairs():
    first = {3: "river boat", 1: "river boat"}
    pairs = similar_pairs(first, {8: "River boat!", 7: "sails"}, threshold=1.0, method="tfidf")
    assert [(pair.latents, pair.similarity) for pair in pairs] == [((1, 8), 1.0), ((3, 8), 1.0)]
    assert pairs[0].explanations == ("river boat", "River boat!")


explanations = st.dictionaries(
    st.integers(0, 99), st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join), max_size=6
)


@settings(deadline=None)
@given(explanations, explanations, st.sampled_from([0.05, 0.3, 0.9]), st.sampled_from([1, 2, 512]))
def test_every_pair_that_reaches_the_threshold_is_found_once(first, second, threshold, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similar_explanations, "BLOCK", block)
        found = similar_pairs(first, second, threshold=threshold, method="tfidf")
    expected = {}
    kept = [{k: v for k, v in side.items() if v} for side in (first, second)]
    if all(kept):
        texts = [text for side in kept for text in side.values()]
        rows = embed(texts, method="tfidf")[0].toarray()
        cosines = rows[: len(kept[0])] @ rows[len(kept[0]) :].T
        expected = {
            (i, j): cosines[a, b]
            for a, i in enumerate(kept[0])
            for b, j in enumerate(kept[1])
            if cosines[a, b] >= threshold - 5e-7
        }
    assert len(found) == len(expected)
    assert {pair.latents: pair.similarity for pair in found} == pytest.approx(expected, abs=1e-6)
    swapped = similar_pairs(second, first, threshold=threshold, method="tfidf")
    assert {pair.latents[::-1] for pair in swapped} == {pair.latents for pair in found}


def test_dense_embeddings_are_compared_as_sparse_ones_are(monkeypatch):
    first, second = sides()
    expected = similar_pairs(first, second, method="tfidf")
    tfidf = similar_explanations._tfidf
    monkeypatch.setattr(similar_explanations, "_tfidf", lambda texts: tfidf(texts).toarray())
    for block in (1, 3, 512):
        monkeypatch.setattr(similar_explanations, "BLOCK", block)
        assert similar_pairs(first, second, method="tfidf") == expected
    for least in (pair.similarity for pair in expected):
        reaching = [pair for pair in expected if pair.similarity >= least]
        assert similar_pairs(first, second, threshold=least, method="tfidf") == reaching


@pytest.mark.parametrize("nothing", ["", " \n", UNPARSED, MISSING])
def test_latents_without_an_explanation_are_not_alike(nothing):
    first, second = {1: nothing, 2: "river boat"}, {3: nothing, 4: "river boat"}
    pairs = similar_pairs(first, second, method="tfidf")
    assert [pair.latents for pair in pairs] == [(2, 4)]
    assert similar_pairs({1: nothing}, second, method="tfidf") == []
    assert similar_pairs(first, {}, method="tfidf") == []


def test_explanations_without_a_word_are_like_nothing():
    assert similar_pairs({1: "the of"}, {2: "the of"}, threshold=0.01, method="tfidf") == []
    rows, method = embed(["the", "?"], method="tfidf")
    assert (rows.shape[0], rows.nnz, method) == (2, 0, "tfidf")


def test_rows_have_length_one_except_those_without_a_word():
    rows, _ = embed(["river boat", "the", "boat boat sail"], method="tfidf")
    norms = np.sqrt((rows.toarray() ** 2).sum(1))
    np.testing.assert_allclose(norms, [1, 0, 1])


def test_a_word_that_is_there_twice_counts_less_than_twice():
    [weights] = embed(["boat boat sail"], method="tfidf")[0].toarray()
    expected = np.array([1.0, 1.0, 1.0, 1 + np.log(2)])  # "boat boat", "boat sail", "sail", "boat"
    np.testing.assert_allclose(np.sort(weights), expected / np.linalg.norm(expected))


@pytest.mark.parametrize("threshold", [0, -0.1, 1.1, float("nan")])
def test_thresholds_that_make_no_sense_are_refused(threshold):
    with pytest.raises(ValueError, match="threshold must be above 0"):
        similar_pairs({1: "a"}, {2: "b"}, threshold=threshold)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"one of \['auto', .*, not 'word2vec'"):
        embed(["a"], method="word2vec")  # pyright: ignore


def test_two_whole_blocks_are_compared_in_pieces(monkeypatch):
    """6,553 latents a side, as in the paper; the whole matrix would be 43 million entries."""
    sizes = []
    alike = similar_explanations._alike

    class Watched:
        def __init__(self, rows):
            self.rows, self.shape = rows, rows.shape

        def __getitem__(self, part):
            sizes.append(self.rows[part].shape[0])
            return self.rows[part]

    monkeypatch.setattr(similar_explanations, "_alike", lambda a, *more: alike(Watched(a), *more))
    numbers = np.random.default_rng(0).permutation(6553)
    first = {i: f"topic{i} kind{i % 911}" for i in range(6553)}
    second = {7000 + i: f"topic{n} sort{n % 911}" for i, n in enumerate(numbers.tolist())}
    pairs = similar_pairs(first, second, method="tfidf")
    assert {pair.latents for pair in pairs} == {(n, 7000 + i) for i, n in enumerate(numbers)}
    assert sum(sizes) == 6553 and max(sizes) == similar_explanations.BLOCK


@pytest.fixture
def without(monkeypatch):
    """Makes packages impossible to import."""

    def without(*packages: str) -> None:
        for name in packages:
            for module in [m for m in sys.modules if m.partition(".")[0] == name]:
                monkeypatch.delitem(sys.modules, module)
            monkeypatch.setitem(sys.modules, name, None)

    return without


def test_without_sentence_transformers_auto_compares_words_and_says_so(without, caplog):
    without("sentence_transformers")
    with caplog.at_level(logging.WARNING):
        rows, method = embed(["river boat", "wind"])
    assert method == "tfidf"
    assert (rows != embed(["river boat", "wind"], method="tfidf")[0]).nnz == 0
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "compared by their words" in record.getMessage()
    assert "pip install sentence-transformers" in record.getMessage()


def test_a_method_whose_package_is_missing_says_what_to_install(without):
    without("sentence_transformers")
    with pytest.raises(ImportError, match=r'pip install sentence-transformers`.*method="tfidf"'):
        embed(["river"], method="sentence-transformers")
    without("sklearn")
    for method in ("auto", "tfidf"):
        with pytest.raises(ImportError, match="pip install scikit-learn"):
            embed(["river"], method=method)


class FakePackage:
    """Plays sentence_transformers: one model is on this machine."""

    def __init__(self, error: Exception | None = None):
        self.error = error
        self.loaded = []

    def SentenceTransformer(self, model, **kwargs):
        self.loaded.append((model, kwargs))
        if self.error:
            raise self.error
        return self

    def encode(self, texts, *, normalize_embeddings, show_progress_bar):
        assert normalize_embeddings
        # Rows have length 1 only up to rounding.
        return np.eye(3, dtype=np.float32)[[len(text) % 3 for text in texts]] * 1.000001


def test_sentence_transformers_come_first_and_stay_off_the_network(monkeypatch):
    package = FakePackage()
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)
    rows, method = embed(["a", "bb", "dddd"])
    assert method == "sentence-transformers"
    assert rows.round(3).tolist() == [[0, 1, 0], [0, 0, 1], [0, 1, 0]]
    [pair] = similar_pairs({1: "a"}, {2: "bb", 3: "dddd"}, model="folder")
    assert pair == SimilarPair((1, 3), ("a", "dddd"), 1.0, "sentence-transformers")
    names = [model for model, _ in package.loaded]
    assert names == ["sentence-transformers/all-MiniLM-L6-v2", "folder"]
    assert all(kwargs == {"local_files_only": True} for _, kwargs in package.loaded)


@pytest.mark.parametrize("error", [OSError("no such model"), RuntimeError("broken"), ValueError()])
def test_a_model_that_cannot_be_loaded_is_done_without(monkeypatch, caplog, error):
    monkeypatch.setitem(sys.modules, "sentence_transformers", FakePackage(error))
    with caplog.at_level(logging.WARNING):
        assert embed(["river"])[1] == "tfidf"
    assert len(caplog.records) == 1
    with pytest.raises(type(error)) as raised:
        embed(["river"], method="sentence-transformers")
    if isinstance(error, OSError):
        assert "hf download sentence-transformers/all-MiniLM-L6-v2" in str(raised.value)


def test_the_real_package_with_a_model_in_a_folder(tmp_path):
    pytest.importorskip("sentence_transformers")
    save_tiny_model(tmp_path / "model", "llama", byte_level_tokenizer())
    folder = str(tmp_path / "model")
    rows, method = embed(["The river", "wind", "The river"], folder, "sentence-transformers")
    assert method == "sentence-transformers" and isinstance(rows, np.ndarray)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(rows[0], rows[2], atol=1e-5)
    pairs = similar_pairs({1: "The river"}, {2: "The river"}, threshold=1.0, model=folder)
    assert [(pair.latents, pair.method) for pair in pairs] == [((1, 2), "sentence-transformers")]


def test_the_real_package_without_the_model(tmp_path, monkeypatch, caplog):
    pytest.importorskip("sentence_transformers")
    nowhere = str(tmp_path / "nowhere")
    with pytest.raises(OSError, match="is not on this machine: download it once"):
        embed(["river"], nowhere, "sentence-transformers")
    with caplog.at_level(logging.WARNING, similar_explanations.__name__):
        assert embed(["river"], nowhere)[1] == "tfidf"
    assert nowhere in caplog.text


PAIR = SimilarPair((1, 2), ("a", "b"), 0.5, "tfidf")


@pytest.mark.parametrize(
    ("correlation", "expected"), [(0.7, True), (0.6999, False), (1.0, True), (-0.9, False)]
)
def test_a_pair_is_confirmed_by_a_correlation_of_at_least_0_7(correlation, expected):
    [pair] = confirm([PAIR], {(1, 2): correlation, (2, 1): 0.0})
    assert pair == replace(PAIR, correlation=correlation, confirmed=expected)
    assert confirm([PAIR], {(1, 2): correlation}, threshold=-1.0)[0].confirmed is True


def test_a_pair_without_a_correlation_is_not_passed_over():
    with pytest.raises(ValueError, match=r"no correlations of \[\(1, 2\)\]"):
        confirm([PAIR], {(2, 1): 0.9})


ROWS, CTX, M = 12, 16, 50
ALL_PAIRS = [(i, j) for i in (0, 3, 20, 21, 49) for j in (0, 4, 21, 33, 48)]


def activations(seed: int = 0, share: float = 0.3) -> torch.Tensor:
    """`[T, M]` as float16 holds them; 4 is 3 with noise, 48 is dead, 33 fires once."""
    generator = torch.Generator().manual_seed(seed)
    acts = torch.rand(ROWS * CTX, M, generator=generator)
    acts *= torch.rand(acts.shape, generator=generator) < share
    acts[:, 4] = acts[:, 3] * (1 + 0.1 * torch.rand(ROWS * CTX, generator=generator))
    acts[:, 48] = 0
    acts[:, 33] = 0
    acts[5, 33] = 2.0
    return acts.half().float()


def write(folder, acts: torch.Tensor, n_splits: int):
    layout = CacheLayout("layers.3", M, CTX, n_splits)
    writer = LatentCacheWriter(folder, layout)
    rows, latents = acts.nonzero(as_tuple=True)
    code = SparseCode(acts[rows, latents], latents, rows, tuple(acts.shape))
    numbers = torch.arange(len(acts))
    writer.add(code, numbers, numbers, numbers // CTX, numbers % CTX)
    writer.finish({"model_name": "model"})
    return folder / "layers.3"


@pytest.mark.parametrize("n_splits", [1, 7])
@pytest.mark.parametrize("entries", [17, 1 << 22])
def test_correlations_are_those_of_the_dense_activations(tmp_path, monkeypatch, n_splits, entries):
    monkeypatch.setattr(similar_explanations, "ENTRIES", entries)
    acts = activations()
    write(tmp_path, acts, n_splits)
    found = activation_correlations(tmp_path, "layers.3", ALL_PAIRS)
    alive = [pair for pair in ALL_PAIRS if 48 not in pair]
    with np.errstate(invalid="ignore"):  # of the latent that never fires
        dense = np.corrcoef(acts.double().numpy(), rowvar=False)
    assert set(found) == set(ALL_PAIRS)
    assert [found[pair] for pair in alive] == pytest.approx([dense[pair] for pair in alive])
    assert found[3, 4] > 0.9 > 0.5 > abs(found[0, 4])
    assert found[0, 0] == found[21, 21] == pytest.approx(1.0)
    assert {found[pair] for pair in ALL_PAIRS if 48 in pair} == {0.0}


def test_a_latent_that_is_the_same_on_every_token_has_no_correlation(tmp_path):
    acts = activations()
    acts[:, 20] = torch.tensor(0.1).half()
    write(tmp_path, acts, 3)
    found = activation_correlations(tmp_path, "layers.3", [(20, 21), (20, 20), (21, 21)])
    assert found == {(20, 21): 0.0, (20, 20): 0.0, (21, 21): pytest.approx(1.0)}


def test_latents_that_exclude_each_other_are_anticorrelated(tmp_path):
    acts = torch.zeros(ROWS * CTX, M)
    acts[::2, 1], acts[1::2, 2] = 3.0, 5.0
    acts[:, 49] = 1.0
    write(tmp_path, acts, 2)
    assert activation_correlations(tmp_path, "layers.3", [(1, 2)]) == {(1, 2): pytest.approx(-1.0)}


def test_large_activations_lose_nothing(tmp_path):
    acts = activations()
    acts[:, 3:5] = (acts[:, 3:5] * 40_000).half().float()
    write(tmp_path, acts, 1)
    dense = np.corrcoef(acts[:, 3:5].double().numpy(), rowvar=False)
    found = activation_correlations(tmp_path, "layers.3", [(3, 4)])
    assert found[3, 4] == pytest.approx(dense[0, 1], rel=1e-9)


def write_split(folder, rows: int, ctx: int, where: np.ndarray, latents: np.ndarray, act: float):
    """One file of latents 10 and 11, which are active at tokens `where`, all to one strength."""
    (folder / "layers.3").mkdir(exist_ok=True)
    locations = np.stack([*np.divmod(where, ctx), latents - 10], axis=1)
    save_file(
        {
            "locations": locations.astype(np.uint16),
            "activations": np.full(len(where), act, dtype=np.float16),
            "tokens": np.zeros((rows, ctx), dtype=np.int64),
        },
        folder / "layers.3" / "10_11.safetensors",
    )


def test_tokens_beyond_those_that_16_bits_count_are_told_apart(tmp_path):
    """delphi writes the numbers of rows as uint16; those of tokens do not fit."""
    where = np.array([0, 256, 512, 600]) * 256
    latents = np.array([10, 10, 11, 11])
    write_split(tmp_path, 601, 256, where, latents, 1.0)
    dense = np.zeros((2, 601 * 256))
    dense[latents - 10, where] = 1
    found = activation_correlations(tmp_path, "layers.3", [(10, 11)])
    assert found[10, 11] == pytest.approx(np.corrcoef(dense)[0, 1], rel=1e-6)


def test_what_rounding_leaves_of_a_constant_is_no_variance(tmp_path):
    tokens = np.arange(999 * 77)
    where = np.concatenate([tokens, [5]])
    write_split(tmp_path, 999, 77, where, np.where(np.arange(len(where)) < 76923, 10, 11), 0.1583)
    found = activation_correlations(tmp_path, "layers.3", [(10, 11), (10, 10), (11, 11)])
    assert found == {(10, 11): 0.0, (10, 10): 0.0, (11, 11): pytest.approx(1.0)}


def test_each_file_is_read_once_and_only_where_a_latent_is_asked_for(tmp_path, monkeypatch):
    folder = write(tmp_path, activations(), 5)
    opened = []

    def watched(path, framework):
        opened.append(path.name)
        return safe_open(path, framework)

    monkeypatch.setattr(similar_explanations, "safe_open", watched)
    (folder / "notes.safetensors").write_bytes(b"not a split")
    activation_correlations(tmp_path, "layers.3", [(0, 3), (0, 49), (3, 49), (4, 0)])
    assert opened == ["0_9.safetensors", "40_49.safetensors"]
    assert activation_correlations(tmp_path / "nowhere", "layers.3", []) == {}


def test_a_latent_that_is_in_no_file_is_named(tmp_path):
    folder = write(tmp_path, activations(), 5)
    with pytest.raises(ValueError, match=r"\[50, 71\] are in no file of .*layers\.3"):
        activation_correlations(tmp_path, "layers.3", [(3, 71), (50, 4)])
    (folder / "10_19.safetensors").unlink()
    with pytest.raises(ValueError, match=r"\[12\] are in no file"):
        activation_correlations(tmp_path, "layers.3", [(12, 20)])
    with pytest.raises(ValueError, match="in no file"):
        activation_correlations(tmp_path, "layers.4", [(1, 2)])


def test_files_that_are_not_of_one_cache_are_refused(tmp_path):
    folder = write(tmp_path, activations(), 5)
    path = folder / "10_19.safetensors"
    whole = load_file(path)
    save_file({**whole, "tokens": whole["tokens"][:-1]}, path)
    with pytest.raises(ValueError, match=r"10_19\.safetensors has tokens \[11, 16\], and other"):
        activation_correlations(tmp_path, "layers.3", [(0, 10)])
    save_file({k: v for k, v in whole.items() if k != "tokens"}, path)
    with pytest.raises(ValueError, match="has no tokens"):
        activation_correlations(tmp_path, "layers.3", [(0, 10)])
    acts = whole["activations"].copy()
    acts[0] = np.inf
    latent = 10 + int(whole["locations"][0, 2])
    save_file({**whole, "activations": acts}, path)
    with pytest.raises(ValueError, match="not finite"):
        activation_correlations(tmp_path, "layers.3", [(0, latent)])


def test_a_table_in_the_form_of_the_papers():
    pairs = [
        SimilarPair((7, 30), ("River boats.", "Boats on\nrivers."), 0.876, "tfidf", 0.71, True),
        SimilarPair((8, 31), ("a | b", r"\| <br> \d"), 0.5, "tfidf", -0.001, False),
        SimilarPair((9, 32), ("x", "y"), 0.25, "tfidf"),
    ]
    assert markdown(pairs, ("Qwen", "Lla|ma")).splitlines() == [
        r"| Qwen-exclusive latent | Lla\|ma-exclusive latent "
        "| Similarity | Correlation | Confirmed |",
        "| --- | --- | ---: | ---: | --- |",
        "| 7: River boats. | 30: Boats on rivers. | 0.88 | 0.71 | yes |",
        r"| 8: a \| b | 31: \\\| \<br> \\d | 0.50 | -0.00 | no |",
        "| 9: x | 32: y | 0.25 |  |  |",
    ]
    assert len(markdown([], ("A", "B")).splitlines()) == 2


@given(st.text("ab|\\<\n\r\u2028 \t`*") | st.text(), st.text("|\\ a"))
def test_no_explanation_breaks_the_table(first, second):
    pair = SimilarPair((1, 2), (first, second), 0.5, "tfidf")
    lines = markdown([pair], ("A", "B")).split("\n")
    assert len(lines) == 3 and len(lines[2].splitlines()) == 1
    # A cell is made of escaped characters and of others that are no pipe.
    cells = re.findall(r"\| ((?:\\.|[^|\\])*) (?=\|)", lines[2])
    assert len(cells) == 5
    shown = [re.sub(r"\\(.)", r"\1", cell) for cell in cells[:2]]
    assert shown == [f"1: {' '.join(first.split())}", f"2: {' '.join(second.split())}"]
