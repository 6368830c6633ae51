"""TransformersClient on tiny random models."""

import asyncio
import threading

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from delphi_adapters.clients import PromptTooLong, TransformersClient, UnsupportedArgument
from delphi_adapters.clients.judge import JudgeConfig, make_client
from tests.support.models import save_tiny_model, tiny_model
from tests.support.tokenizers import CHATML, byte_level_tokenizer

# isort: split
from delphi.clients.client import Client, Response
from delphi.scorers import DetectionScorer
from delphi.scorers.classifier.sample import ClassifierOutput, Sample

GENERATING = CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + GENERATING
)
PROMPTS = ["In 1989 the wall came down", "A crosscoder", "def main(argv):\n    for", "모델은", "x"]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer(chat_template=GENERATING)


@pytest.fixture(scope="module")
def model(tokenizer):
    model = tiny_model("llama", causal_lm=True, vocab_size=len(tokenizer), seed=3)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


@pytest.fixture
def batches(model, monkeypatch):
    """Shapes of the batches that the model generates for, and the threads it does so in."""
    seen = []
    real = model.generate

    def generate(**kwargs):
        seen.append((tuple(kwargs["input_ids"].shape), threading.current_thread()))
        return real(**kwargs)

    monkeypatch.setattr(model, "generate", generate)
    return seen


def ask(client: TransformersClient, *prompts, **kwargs) -> list[str]:
    async def main():
        asked = [client.generate(prompt, **kwargs) for prompt in prompts]
        return [response.text for response in await asyncio.gather(*asked)]

    return asyncio.run(main())


def greedy(model, tokenizer, ids: list[int], steps: int) -> list[int]:
    """Greedy decoding by plain forwards, without a cache."""
    new = []
    for _ in range(steps):
        logits = model(torch.tensor([ids + new])).logits[0, -1]
        new.append(int(logits.argmax()))
        if new[-1] == tokenizer.eos_token_id:
            break
    return new


def test_answers_are_the_model_s_greedy_ones_however_prompts_are_batched(model, tokenizer, batches):
    client = TransformersClient((model, tokenizer), batch_size=4, max_new_tokens=8)
    assert isinstance(client, Client)
    answers = ask(client, *PROMPTS)
    assert [shape[0] for shape, _ in batches] == [4, 1]
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = client.encode(prompt)
        expected = greedy(model, tokenizer, ids, 8)
        assert answer == tokenizer.decode(expected, skip_special_tokens=True)
    assert len(set(answers)) > 1
    assert ask(client, PROMPTS[1]) == [answers[1]]


def test_the_prompt_follows_the_chat_template(model, tokenizer):
    client = TransformersClient((model, tokenizer))
    prompt = [
        {"role": "system", "content": "One."},
        {"role": "system", "content": "Two."},
        {"role": "user", "content": "Q <s>"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "R"},
    ]
    text = tokenizer.decode(client.encode(prompt))
    assert text == (
        "<|im_start|>system\nOne.\n\nTwo.<|im_end|>\n<|im_start|>user\nQ <s><|im_end|>\n"
        "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nR<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert client.encode("R") == client.encode([{"role": "user", "content": "R"}])


def test_an_unfinished_answer_is_continued(model, tokenizer):
    client = TransformersClient((model, tokenizer))
    prompt = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "["}]
    text = tokenizer.decode(client.encode(prompt))
    assert text == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n["


def test_without_a_system_role_the_system_prompt_comes_before_the_first_user_message(model):
    client = TransformersClient((model, byte_level_tokenizer(chat_template=NO_SYSTEM)))
    prompt = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    text = client.tokenizer.decode(client.encode(prompt))
    assert text == "<|im_start|>user\nS\n\nQ<|im_end|>\n<|im_start|>assistant\n"


def test_without_a_template_texts_are_continued_and_conversations_are_plain(model):
    client = TransformersClient((model, byte_level_tokenizer(bos=True)))
    decode = client.tokenizer.decode
    assert decode(client.encode("In 1989")) == "<s>In 1989"
    prompt = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "R"},
    ]
    assert (
        decode(client.encode(prompt)) == "<s>S\n\nUser: Q\n\nAssistant: A\n\nUser: R\n\nAssistant:"
    )
    assert decode(client.encode(prompt[:3])).endswith("\n\nAssistant: A")


def test_nothing_is_truncated(model, tokenizer, batches):
    client = TransformersClient((model, tokenizer), max_new_tokens=12)
    assert client.context == 512
    length = len(client.encode(""))
    fits = next("x" * n for n in range(400, 512) if len(client.encode("x" * n)) == 500)
    assert length < 500
    assert len(ask(client, fits)) == 1
    with pytest.raises(PromptTooLong, match=r"has 501 tokens and its answer up to 12, .* of 512"):
        ask(client, fits + "x")
    with pytest.raises(PromptTooLong, match="500 tokens and its answer up to 13"):
        ask(client, fits, max_tokens=13)
    assert len(batches) == 1


class _Force(LogitsProcessor):
    """Makes the model write these tokens."""

    def __init__(self, ids: list[int], start: int):
        self.ids, self.start = ids, start

    def __call__(self, input_ids, scores):
        scores = torch.full_like(scores, -1e9)
        scores[:, self.ids[input_ids.shape[1] - self.start]] = 0.0
        return scores


@pytest.fixture
def force(model, tokenizer, monkeypatch):
    """Makes the model write a text, whatever it is asked."""
    real = model.generate

    def force(text: str) -> None:
        def generate(**kwargs):
            force = _Force(tokenizer(text)["input_ids"], kwargs["input_ids"].shape[1])
            return real(**kwargs, logits_processor=LogitsProcessorList([force]))

        monkeypatch.setattr(model, "generate", generate)

    return force


def test_an_answer_ends_where_the_model_ends_it(model, tokenizer, force):
    force("[1, 0]</s> and more and more")
    client = TransformersClient((model, tokenizer), max_new_tokens=10)
    assert ask(client, "A") == ["[1, 0]"]
    assert client.outcomes == {"end_turn": 1}
    assert ask(client, "A", max_tokens=2) != ["[1, 0]"]
    assert client.outcomes == {"end_turn": 1, "max_tokens": 1}


def test_delphi_s_scorer_reads_the_answers(model, tokenizer, force):
    force("[1, 0]</s>")
    # delphi's few-shot prompt is longer than the other tests' context
    client = TransformersClient((model, tokenizer), max_new_tokens=10)
    client.context = None
    outputs = [ClassifierOutput([f"t{i}"], [0.0], 1, True) for i in range(2)]
    scorer = DetectionScorer(client, n_examples_shown=2, verbose=False, temperature=0.0)
    samples = [Sample("text", output) for output in outputs]
    result = asyncio.run(scorer._generate("an explanation", samples))
    assert [output.prediction for output in result] == [True, False]


def test_the_event_loop_goes_on_while_the_model_generates(model, tokenizer, monkeypatch):
    started, go_on = threading.Event(), threading.Event()
    real = model.generate

    def generate(**kwargs):
        started.set()
        assert go_on.wait(60)
        return real(**kwargs)

    monkeypatch.setattr(model, "generate", generate)
    client = TransformersClient((model, tokenizer), max_new_tokens=2)

    async def main():
        answer = asyncio.create_task(client.generate("A"))
        while not started.is_set():
            await asyncio.sleep(0)
        go_on.set()  # only a loop that is not blocked gets here
        return await answer

    assert isinstance(asyncio.run(main()), Response)


def test_requests_that_arrive_during_a_batch_are_the_next_one(model, tokenizer, batches):
    client = TransformersClient((model, tokenizer), max_new_tokens=4)

    async def main():
        first = asyncio.create_task(client.generate("A"))
        while not batches:
            await asyncio.sleep(0)
        await asyncio.gather(first, *[client.generate(prompt) for prompt in PROMPTS])

    asyncio.run(main())
    assert [shape[0] for shape, _ in batches] in ([1, 5], [1, 1, 4])
    assert all(thread is not threading.main_thread() for _, thread in batches)


def test_requests_with_different_settings_are_not_mixed(model, tokenizer, batches):
    client = TransformersClient((model, tokenizer), max_new_tokens=4)

    async def main():
        asked = [client.generate("A", max_tokens=n) for n in (2, 3, 2)]
        return await asyncio.gather(*asked)

    texts = [response.text for response in asyncio.run(main())]
    assert [shape[0] for shape, _ in batches] == [2, 1]
    assert texts[0] == texts[2] and texts[1].startswith(texts[0]) and texts[1] != texts[0]


def test_sampling_follows_the_temperature_only_if_wanted(model, tokenizer):
    plain = TransformersClient((model, tokenizer), max_new_tokens=16)
    expected = ask(plain, "A")
    assert ask(plain, "A", temperature=5.0) == expected
    sampled = TransformersClient((model, tokenizer), max_new_tokens=16, sampling=True)
    assert ask(sampled, "A", temperature=0.0) == expected
    answers = []
    for seed in (0, 0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            answers += ask(sampled, "A", temperature=5.0)
    assert answers[0] == answers[1] != answers[2]
    assert expected[0] not in answers


@pytest.mark.parametrize(
    "kwargs", [{"logprobs": True}, {"prompt_logprobs": 5}, {"stop": ["x"]}, {"seed": 0}]
)
def test_arguments_that_cannot_be_honoured_are_refused(model, tokenizer, kwargs):
    with pytest.raises(UnsupportedArgument, match=next(iter(kwargs))):
        ask(TransformersClient((model, tokenizer)), "A", **kwargs)


def test_an_error_of_the_model_reaches_who_asked_and_the_next_is_answered(
    model, tokenizer, monkeypatch
):
    client = TransformersClient((model, tokenizer), max_new_tokens=2)
    with monkeypatch.context() as patch:

        def generate(**kwargs):
            raise RuntimeError("out of memory")

        patch.setattr(model, "generate", generate)
        with pytest.raises(RuntimeError, match="out of memory"):
            ask(client, "A", "B")
    assert len(ask(client, "A")) == 1


def test_a_caller_that_gives_up_does_not_disturb_the_others(model, tokenizer, batches):
    client = TransformersClient((model, tokenizer), max_new_tokens=2)

    async def main():
        asked = [asyncio.create_task(client.generate(prompt)) for prompt in PROMPTS[:3]]
        await asyncio.sleep(0)
        asked[0].cancel()
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(main())
    assert isinstance(answers[0], asyncio.CancelledError)
    assert all(isinstance(answer, Response) for answer in answers[1:])


def test_a_model_is_loaded_from_a_folder(tmp_path, tokenizer):
    folder = save_tiny_model(tmp_path / "model", "gpt2", tokenizer)
    client = TransformersClient(folder, max_new_tokens=4, device="cpu")
    assert client.model == str(folder) and client.context == 512
    assert not client.language_model.training
    assert ask(client, "A") == ask(TransformersClient(str(folder), max_new_tokens=4), "A")


def test_padding_does_not_need_a_padding_token(model, batches):
    tokenizer = byte_level_tokenizer(chat_template=GENERATING)
    expected = ask(TransformersClient((model, tokenizer), max_new_tokens=6), *PROMPTS)
    tokenizer.pad_token = None
    assert ask(TransformersClient((model, tokenizer), max_new_tokens=6), *PROMPTS) == expected
    assert len(batches) == 2


def test_sizes_that_cannot_work_are_refused(model, tokenizer):
    with pytest.raises(ValueError, match="at least 1"):
        TransformersClient((model, tokenizer), batch_size=0)


@pytest.mark.parametrize("max_tokens", [0, -1])
def test_no_tokens_are_not_the_default(model, tokenizer, max_tokens):
    with pytest.raises(ValueError, match="must be a positive integer"):
        ask(TransformersClient((model, tokenizer)), "A", max_tokens=max_tokens)


@pytest.mark.parametrize("option", ["max_tokens", "concurrency", "max_concurrent"])
def test_options_of_a_judge_are_at_least_1(option, tmp_path):
    with pytest.raises(ValueError, match=f"--{option} must be at least 1, got 0"):
        make_client(JudgeConfig("some/model", **{option: 0}), tmp_path)
