import importlib.util
import json
import re
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[2] / "examples" / "demo_text.py"
_SPEC = importlib.util.spec_from_file_location("demo_text", _PATH)
assert _SPEC and _SPEC.loader
demo_text = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(demo_text)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "demo.jsonl"
    count = demo_text.write_demo_texts(path)
    return count, path


def _texts(path):
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_there_is_text_for_the_demo_several_times_over(written):
    count, path = written
    texts = _texts(path)
    assert len(texts) == count
    assert sum(map(len, texts)) > 1_200_000


def test_documents_keep_their_length_limits(written):
    lengths = [len(text) for text in _texts(written[1])]
    assert min(lengths) >= demo_text.MIN_CHARACTERS
    assert max(lengths) <= demo_text.MAX_CHARACTERS


def test_no_paragraph_stands_twice(written):
    paragraphs = [part for text in _texts(written[1]) for part in text.split("\n\n")]
    assert len(set(paragraphs)) == len(paragraphs)


def test_text_is_english_not_code(written):
    text = " ".join(_texts(written[1]))
    words = re.findall(r"[A-Za-z]+", text.lower())
    assert words.count("the") > 0.04 * len(words)  # about 6% in English prose
    assert ">>>" not in text and "::=" not in text


def test_language_reference_and_library_are_both_there(written):
    text = " ".join(_texts(written[1]))
    assert "Assert statements are a convenient way to insert debugging assertions" in text
    assert "Read from and write to tar format archives." in text


@pytest.mark.slow
def test_writing_again_gives_the_same_bytes(written, tmp_path):
    demo_text.write_demo_texts(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == written[1].read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.jsonl"]


def test_docstrings_come_in_source_order_without_running_the_module():
    source = b'''"""Module."""
raise SystemExit("must not run")
class A:
    """Class."""
    async def f(self):
        """Method."""
def g():
    "Function."
def silent(): pass
'''
    assert demo_text.docstrings(source) == ["Module.", "Class.", "Method.", "Function."]


def test_source_that_does_not_parse_has_no_docstrings():
    assert demo_text.docstrings(b"def (:") == []


@pytest.mark.parametrize(
    ("paragraph", "english"),
    [
        ("The value is returned to the caller when the file has been closed.", True),
        (">>> the value is what it is and that is all there is to it", False),
        ('assert_stmt ::= "assert" expression is the form of this statement', False),
        ("for x in range(10): total += f(x, y[0]); print(total)", False),
        ("See also", False),
        ("alpha beta gamma delta epsilon zeta eta theta", False),
    ],
)
def test_only_english_paragraphs_pass(paragraph, english):
    assert demo_text.is_english(paragraph) is english


def test_hard_wrapped_lines_become_one_line():
    wrapped = (
        "    This is the first line of a paragraph that is wrapped\n    and this is where it ends."
    )
    assert demo_text.english_paragraphs(wrapped) == [
        "This is the first line of a paragraph that is wrapped and this is where it ends."
    ]


def test_long_documents_are_split_between_paragraphs():
    paragraphs = ["a" * 1500, "b" * 1500, "c" * 1500, "d" * 1500]
    assert demo_text.split_document(paragraphs) == [
        "a" * 1500 + "\n\n" + "b" * 1500,
        "c" * 1500 + "\n\n" + "d" * 1500,
    ]


def test_a_paragraph_beyond_the_limit_is_split_between_words():
    pieces = demo_text.split_document(["word " * 1000])
    assert [len(piece) <= demo_text.MAX_CHARACTERS for piece in pieces] == [True, True]
    assert " ".join(pieces).split() == ["word"] * 1000
