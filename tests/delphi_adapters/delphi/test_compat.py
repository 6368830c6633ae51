"""Real delphi, imported where the packages that it imports needlessly are missing."""

import pytest
import torch

from delphi_adapters.delphi.compat import TokenwiseTokenizer
from tests.support.fresh import run_fresh
from tests.support.tokenizers import byte_level_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


def test_all_of_delphi_is_there_and_nothing_that_is_missing_seems_installed(tmp_path):
    result = run_fresh(
        """
        import importlib.util, sys
        missing = [n for n in ("vllm", "faiss", "sentence_transformers")
                   if importlib.util.find_spec(n) is None]
        import delphi_adapters.delphi.compat
        from delphi.clients import Client, Offline, OpenRouter
        from delphi.explainers import DefaultExplainer
        from delphi.scorers import DetectionScorer
        from delphi.pipeline import Pipeline
        assert all(importlib.util.find_spec(n) is None for n in missing)
        assert not any(n.partition(".")[0] in missing for n in sys.modules)
        assert not any("Placeholders" in type(f).__name__ for f in sys.meta_path)
        if "vllm" in missing:
            try:
                Offline("model")
            except ImportError as error:
                assert "pip install vllm" in str(error)
            else:
                raise AssertionError("a placeholder was called")
        """,
        tmp_path,
    )
    assert result.code == 0, result.err


def test_installed_packages_are_used_as_they_are(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "faiss.py").write_text("MARK = 'real'\n", encoding="utf-8")
    result = run_fresh(
        f"""
        import sys
        sys.path.insert(0, {str(tmp_path / "site")!r})
        import delphi_adapters.delphi.compat
        from delphi.latents import constructors
        assert constructors.faiss.MARK == "real"
        assert "faiss" in sys.modules
        """,
        tmp_path,
    )
    assert result.code == 0, result.err


@pytest.mark.parametrize("first", ["nnsight", "delphi_adapters.delphi.compat"])
def test_nnsight_and_delphi_go_together_in_any_order(first, tmp_path):
    result = run_fresh(
        f"""
        import {first}
        import nnsight, delphi_adapters.delphi.compat
        from delphi.clients import Client
        assert hasattr(object(), "save")  # nnsight's own
        """,
        tmp_path,
    )
    assert result.code == 0, result.err


def test_claude_can_be_asked_after_nnsight_was_imported(server, tmp_path):
    result = run_fresh(
        f"""
        import asyncio
        import delphi_adapters.delphi.compat, nnsight
        from delphi_adapters.clients import AnthropicClient
        client = AnthropicClient("claude-haiku-4-5", base_url="{server.url}")
        print(asyncio.run(client.generate("the river")).text)
        """,
        tmp_path,
    )
    assert result.code == 0, result.err
    assert result.out.endswith("To the river\n")


def test_without_delphi_the_error_says_what_to_install(tmp_path):
    result = run_fresh(
        """
        import sys
        class Hide:
            def find_spec(self, name, path=None, target=None):
                if name == "delphi":
                    raise ModuleNotFoundError(name)
        import importlib.util
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda n, p=None: None if n == "delphi" else real(n, p)
        import delphi_adapters.delphi.compat
        """,
        tmp_path,
    )
    assert result.code == 1
    assert "delphi-lite" in result.err and "--no-deps 'eai-delphi" in result.err


def test_a_row_of_ids_is_decoded_token_by_token(tokenizer):
    ids = tokenizer("the cat sat on the mat")["input_ids"]
    wrapped = TokenwiseTokenizer(tokenizer)
    pieces = wrapped.batch_decode(torch.tensor(ids))
    assert len(pieces) == len(ids) > 1
    assert pieces == [tokenizer.decode([i]) for i in ids] == wrapped.batch_decode(ids)
    assert wrapped.batch_decode([ids, ids[:2]]) == [
        tokenizer.decode(ids),
        tokenizer.decode(ids[:2]),
    ]
    assert wrapped.batch_decode([]) == []
    assert wrapped("the cat")["input_ids"] == tokenizer("the cat")["input_ids"]
    assert len(wrapped) == len(tokenizer)
    assert wrapped.decode(ids) == tokenizer.decode(ids)
