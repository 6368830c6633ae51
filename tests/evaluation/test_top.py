import json

import pytest
import torch
from datasets import Dataset

from sparsify_crosscoder import Crosscoder
from sparsify_crosscoder.__main__ import main
from sparsify_crosscoder.evaluation.top import (
    Occurrences,
    TopLatents,
    choose_by_source,
    choose_latents,
    collect_occurrences,
    describe_latents,
    in_turn,
    largest_activations,
    mark_tokens,
    template_note,
)
from tests.support.crosscoders import make
from tests.support.tokenizers import CHATML, byte_level_tokenizer


def occurrences() -> Occurrences:
    return Occurrences(
        acts=torch.tensor([1.0, 5.0, 2.0, 4.0, 9.0]),
        latents=torch.tensor([3, 3, 3, 7, 9]),
        rows=torch.tensor([0, 1, 2, 2, 3]),
        windows=torch.tensor([0, 0, 1, 1]),
        positions=torch.tensor([0, 1, 0, 1]),
        num_latents=40,
    )


def test_occurrences_are_those_of_the_code():
    crosscoder = make("dfc", {}).eval()
    x = [torch.randn(30, d, dtype=torch.float64) for d in (7, 5)]
    window, position = torch.arange(30) // 10, torch.arange(30) % 10
    parts = [slice(0, 12), slice(12, 30)]
    found = collect_occurrences(
        crosscoder,
        iter([([part[p] for part in x], window[p], position[p]) for p in parts]),
        outlier_multiple=0.0,
    )
    dense = crosscoder.encode_sparse(x).to_dense()
    assert torch.equal(found.firing_counts(), (dense > 0).sum(0))
    torch.testing.assert_close(found.energies(), dense.pow(2).sum(0).float())
    assert torch.equal(found.windows, window)


def test_outliers_are_left_out():
    crosscoder = make("dfc", {}).eval()
    x = [torch.randn(30, d, dtype=torch.float64) for d in (7, 5)]
    x[1][11] *= 1e4
    found = collect_occurrences(crosscoder, iter([(x, torch.arange(30), torch.zeros(30))]), 50.0)
    assert found.windows.tolist() == [i for i in range(30) if i != 11]
    assert int(found.rows.max()) < 29


def test_the_strongest_of_each_exclusive_block_are_chosen_and_silent_ones_are_not():
    crosscoder = make("dfc", {})
    # Exclusive blocks: latents 0..7 and 8..13. Only 3, 7 and 9 fire; 3 carries 30, 7 carries 16.
    assert choose_latents(crosscoder, occurrences(), 5) == [3, 7, 9]
    assert choose_latents(crosscoder, occurrences(), 1) == [3, 9]


def test_each_models_latents_come_in_turn():
    crosscoder = make("dfc", {})
    assert choose_by_source(crosscoder, occurrences(), 5) == [[3, 7], [9]]
    assert in_turn([[3, 7], [9]]) == [3, 9, 7]
    assert in_turn([[], [1, 2], [3], [4, 5, 6]]) == [1, 3, 4, 2, 5, 6]
    assert in_turn([]) == []


def test_latents_that_fire_nearly_everywhere_come_last():
    crosscoder = make("dfc", {})
    found = occurrences()
    found.windows = torch.zeros(11, dtype=torch.long)  # latent 3 fires on 3 pairs of 11
    assert choose_latents(crosscoder, found, 5) == [7, 3, 9]


def test_without_blocks_the_most_extreme_relative_norms_are_chosen():
    crosscoder = make("crosscoder", {})
    with torch.no_grad():
        crosscoder.decoders[0][3, 7:] = 0
        crosscoder.decoders[0][9, :7] = 0
        crosscoder.decoders[0][20, :7] = 0  # never fires
    assert choose_latents(crosscoder, occurrences(), 1) == [3, 9]


def test_active_tokens_are_marked_in_the_tokens_of_each_model():
    tokenizers = [byte_level_tokenizer(vocab_size=n) for n in (300, 500)]
    text = "The quick brown fox jumps over the lazy dog"
    row = {"text_id": 5}
    for s, tokenizer in enumerate(tokenizers):
        encoded = tokenizer(text, return_offsets_mapping=True)
        ends = [end for _, end in encoded["offset_mapping"]]
        row[f"input_ids_{s}"] = encoded["input_ids"]
        row[f"pairs_{s}"] = [ends.index(e) for e in (9, 15, 43)]
    marked = [mark_tokens(row, s, {0: 1.0, 2: 3.0}, 2, t) for s, t in enumerate(tokenizers)]
    for text_marked, tokenizer, s in zip(marked, tokenizers, (0, 1), strict=True):
        last = tokenizer.decode([row[f"input_ids_{s}"][-1]])
        assert text_marked.endswith(f"«{last}»")
        assert text_marked.replace("«", "").replace("»", "") in text
    assert marked[0].count("«") <= marked[1].count("«") == 2


def test_a_report_lists_one_snippet_a_window_strongest_first():
    crosscoder = make("dfc", {})
    windows = Dataset.from_dict(
        {
            "text_id": [10, 11],
            "input_ids_0": [[1, 2, 3], [4, 5, 6]],
            "pairs_0": [[1, 2], [0, 2]],
            "input_ids_1": [[1, 2, 3], [4, 5, 6]],
            "pairs_1": [[0, 2], [1, 2]],
        }
    )
    tokenizer = byte_level_tokenizer()
    [report] = describe_latents(crosscoder, occurrences(), [3], windows, [tokenizer] * 2)
    assert (report.block, report.relative_decoder_norm) == ("exclusive_0", 1.0)
    assert [(s.activation, s.text_id) for s in report.snippets] == [(5.0, 10), (2.0, 11)]
    assert report.firing_fraction == 0.75 and report.max_activation == 5.0
    [silent] = describe_latents(crosscoder, occurrences(), [30], windows, [tokenizer] * 2)
    assert silent.snippets == [] and silent.block == "shared"


@pytest.mark.parametrize(
    ("text", "token", "note"),
    [
        ("<|im_start|>user\nred wine<|im_end|>\n", "<|im_start|>", "special token <|im_start|>"),
        ("<|im_start|>user\nred wine<|im_end|>\n", "\n", "chat template '<|im_start|>user\\n'"),
        ("<|im_start|>assistant\nI see<|im_end|>", "ant", "chat template '<|im_start|>assistant'"),
        ("<|im_start|>user\nred wine<|im_end|>\n", "wi", ""),
        ("<|im_start|>tool\nred", "to", "chat template '<|im_start|>to'"),
        ("<|im_start|>tooth", "to", ""),
        ("<|im_start|>user\n no user here", "here", ""),
        ("<s>user of words", "user", ""),
        ("one user said", "user", ""),
        ("red<|im_end|>\n", "\n", "chat template '<|im_end|>\\n'"),
    ],
)
def test_what_no_one_has_said_is_told_from_text(text, token, note):
    tokenizer = byte_level_tokenizer(
        sentences=["user", "assist", "ant", "here", "one words said", "wi", "to"]
    )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    stop = text.rindex(token) + len(token) if note == "" else text.index(token) + len(token)
    place = next(i for i, (_, end) in enumerate(encoded["offset_mapping"]) if end == stop)
    window = {"input_ids_0": encoded["input_ids"], "pairs_0": [0, place]}
    assert template_note(window, 0, 1, tokenizer) == note


def test_one_tokenizer_is_shown_once_and_both_models_are_in_turn(twins, tmp_path, capsys):
    out = tmp_path / "top.json"
    main(["top", str(twins), "--count", "2", "--snippets", "2", "--json", str(out)])
    said = capsys.readouterr().out
    reports = json.loads(out.read_text(encoding="utf-8"))
    assert [report["block"] for report in reports] == ["exclusive_0", "exclusive_1"] * 2
    for report in reports:
        for snippet in report["snippets"]:
            assert len(snippet["texts"]) == 2 and snippet["note"] == ""
    shown = [snippet["texts"][0] for report in reports for snippet in report["snippets"]]
    assert sum(line.startswith("     ") for line in said.splitlines()) == len(shown)
    assert "A base, B tuned: the same tokens, shown once." in said and "  A+B  " in said


def test_two_tokenizers_are_both_shown(run, capsys):
    main(["top", str(run), "--count", "1", "--snippets", "1"])
    said = capsys.readouterr().out
    assert said.count("  A llama  ") == said.count("  B gpt2 ") == 2 and "A+B" not in said


def test_a_latent_of_the_template_says_so():
    crosscoder = make("dfc", {})
    tokenizer = byte_level_tokenizer(chat_template=CHATML)
    ids = tokenizer("<|im_start|>user\nred", add_special_tokens=False)["input_ids"]
    windows = Dataset.from_dict(
        {"text_id": [1, 2], **{f"input_ids_{s}": [ids] * 2 for s in range(2)}}
        | {f"pairs_{s}": [[0, 1]] * 2 for s in range(2)}
    )
    reports = describe_latents(crosscoder, occurrences(), [3], windows, [tokenizer] * 2)
    said = TopLatents(reports, ["A one", "B two"], alike=True).text()
    assert "what no one has said: chat template '<|im_start|>u', special token <|im_start|>" in said
    assert said.count("(special token <|im_start|>)") == 1


def with_an_outlier() -> tuple[Crosscoder, list[torch.Tensor]]:
    """Thirty pairs, of which the eleventh is far out and moves every latent most."""
    crosscoder = make("dfc", {}).eval()
    crosscoder.threshold.fill_(1e-3)
    x = [torch.randn(30, d, dtype=torch.float64) for d in (7, 5)]
    for part in x:
        part[11] *= 1e4
    return crosscoder, x


@pytest.mark.parametrize("chunk", [30, 10, 1])
@pytest.mark.parametrize("multiple", [2.0, 6.0, 0.0])
def test_an_outlier_defines_no_largest_activation_whatever_the_chunks(chunk, multiple):
    crosscoder, x = with_an_outlier()
    crosscoder.median_norms.copy_(torch.stack([part.norm(dim=1).median() for part in x]))
    places = [slice(i, i + chunk) for i in range(0, 30, chunk)]
    chunks = [([part[p] for part in x], torch.arange(30)[p], torch.zeros(30)[p]) for p in places]
    norms = [part.norm(dim=1) / part.norm(dim=1).median() for part in x]
    keep = (norms[0] <= (multiple or torch.inf)) & (norms[1] <= (multiple or torch.inf))
    assert bool(keep[11]) is (multiple == 0)
    acts = crosscoder.encode_sparse(x).to_dense()
    expected = (acts * keep[:, None]).amax(0).float()
    found = largest_activations(crosscoder, iter(chunks), torch.arange(40), multiple)
    torch.testing.assert_close(found, expected)
    occurring = collect_occurrences(crosscoder, iter(chunks), multiple)
    assert occurring.windows.tolist() == keep.nonzero()[:, 0].tolist()
