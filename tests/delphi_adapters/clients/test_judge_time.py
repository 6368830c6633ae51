"""What a local judge takes, said before it is asked."""

import re

import pytest

from delphi_adapters.clients import TransformersClient
from delphi_adapters.clients.judge_time import (
    JudgeSpeed,
    cautions,
    computed,
    duration,
    named_cautions,
    say_time,
    timed,
)
from delphi_adapters.commands.explain import main as explain
from tests.support.models import save_tiny_model, tiny_model
from tests.support.tokenizers import byte_level_tokenizer

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture
def client():
    tokenizer = byte_level_tokenizer()
    model = tiny_model("llama", causal_lm=True, vocab_size=len(tokenizer))
    return TransformersClient((model, tokenizer), max_new_tokens=20)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "1 s"),
        (89, "89 s"),
        (720, "12 min"),
        (3_599, "1 h"),
        (12_000, "3 h 20 min"),
        (187_200, "2 days 4 h"),
    ],
)
def test_times_are_said_in_words(seconds, said):
    assert duration(seconds) == said


def test_reading_and_writing_add_up():
    assert JudgeSpeed(read=100, written=10).seconds(1_000, 50) == 15


def test_a_judge_is_timed_and_its_time_is_for_all_that_is_asked(client, capsys):
    speed = timed(client)
    assert speed.read > 0 and speed.written > 0
    prompts = ["one two three", "four"]
    seconds = say_time(client, prompts, 10.0, "20 latents")
    assert seconds is not None and seconds > 0
    said = capsys.readouterr().out
    read = 10 * sum(len(client.encode(prompt)) for prompt in prompts)
    assert re.search(rf"About .* on this machine for 20 latents: {read:,} tokens to read", said)
    assert "400 to write" in said  # an answer is no longer than it may be
    assert "has no chat template" in said


def test_a_judge_that_is_asked_elsewhere_is_not_timed(capsys):
    assert say_time(object(), ["one"], 1.0, "one latent") is None
    assert capsys.readouterr().out == ""


def test_what_cannot_judge_is_named():
    chat, plain = byte_level_tokenizer(), byte_level_tokenizer()
    chat.chat_template, plain.chat_template = TEMPLATE, None
    assert cautions(chat, 8_000_000_000, "large") == []
    (small,) = cautions(chat, 135_000_000, "small")
    assert "135 million parameters" in small
    (base,) = cautions(plain, 8_000_000_000, "base")
    assert "no chat template" in base
    assert len(cautions(plain, 1_000, "tiny")) == 2


def test_a_dry_run_says_roughly_without_loading_the_weights(run, tmp_path, capsys):
    judge = save_tiny_model(tmp_path / "judge", "llama", byte_level_tokenizer())
    (judge / "model.safetensors").unlink()  # nothing but its size is read
    assert len(named_cautions(str(judge))) == 2
    assert computed(str(judge), 1e12, 1e10).read > computed(str(judge), 1e11, 1e10).read
    options = [str(run), "--out", str(tmp_path / "out"), "--ctx_len", "32"]
    options += ["--example_ctx_len", "16", "--latents", "3", "5"]
    explain([*options, "--judge", str(judge), "--dry_run"])
    said = capsys.readouterr().out
    assert re.search(r"About .* on this machine, computed from the size", said)
    assert "not known before it is loaded" in said
    assert "can hardly judge" in said
