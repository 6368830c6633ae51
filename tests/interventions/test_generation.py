"""Steered generation in one batch, against one prompt and one strength at a time."""

import pytest
import torch
from nnsight import TransformersModel

from sparsify_crosscoder.harvest.batched_generation import end_tokens
from sparsify_crosscoder.interventions.generation import Answering, Sampling, generate
from sparsify_crosscoder.interventions.steering import Steering
from tests.support.models import tiny_model
from tests.support.tokenizers import CHATML, byte_level_tokenizer

KINDS = ("llama", "gpt2", "gemma3", "qwen3", "gpt_oss")
PROMPTS = ["The quick brown fox", "In 1989 the wall came down; in 1990", "She"]
STRENGTHS = [0.0, 1.0, 3.0]
SHORT = Sampling(max_new_tokens=10)
WIDTH = 32


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer(bos=True)


@pytest.fixture(scope="module", params=KINDS)
def model(request, tokenizer):
    model = tiny_model(request.param, causal_lm=True, vocab_size=len(tokenizer))
    model.generation_config.repetition_penalty = 1.3  # a checkpoint's own, not to be taken over
    return model


@pytest.fixture(scope="module")
def steering(model):
    layer = "h.1" if model.config.model_type == "gpt2" else "layers.1"
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    return Steering(vector, layer, scale=3.0)


def by_hand(model, tokenizer, prompt, steering, strength, length):
    """Greedy continuation of one prompt, token by token without a cache, by a plain hook."""
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    layer = model.base_model.get_submodule(steering.hookpoint)
    change = strength * steering.scale * steering.vector
    handle = layer.register_forward_hook(lambda module, args, output: output + change)
    answer = []
    try:
        for _ in range(length):
            with torch.no_grad():
                token = int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id or token == model.generation_config.eos_token_id:
                break
            answer.append(token)
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
    finally:
        handle.remove()
    return answer


def test_a_batch_equals_hand_written_hooks_one_by_one(model, tokenizer, steering):
    found = generate(model, PROMPTS, steering, STRENGTHS, SHORT, tokenizer=tokenizer)
    for prompt, answers in zip(PROMPTS, found.answers, strict=True):
        for strength, answer in zip(STRENGTHS, answers, strict=True):
            expected = by_hand(model, tokenizer, prompt, steering, strength, 10)
            assert answer.tokens == expected, (prompt, strength)
    texts = {tuple(answer.tokens) for answers in found.answers for answer in answers}
    assert len(texts) > len(PROMPTS)  # steering did something


def test_nnsight_gives_the_same_answers(model, tokenizer, steering):
    traced = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    options = {"steering": steering, "strengths": STRENGTHS, "sampling": SHORT}
    by_trace = generate(traced, PROMPTS, **options)
    by_hooks = generate(model, PROMPTS, **options, tokenizer=tokenizer)
    assert by_trace.answers == by_hooks.answers


@pytest.mark.parametrize("tokens", ["prompt", "generated", (1, 3)])
def test_nnsight_steers_the_same_tokens(model, tokenizer, steering, tokens):
    traced = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    some = Steering(steering.vector, steering.hookpoint, 6.0, tokens=tokens)
    by_trace = generate(traced, PROMPTS, some, [1.0], SHORT)
    by_hooks = generate(model, PROMPTS, some, [1.0], SHORT, tokenizer=tokenizer)
    assert by_trace.answers == by_hooks.answers


def test_a_users_own_trace_can_steer(model, tokenizer, steering):
    traced = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    prefix = model.base_model_prefix
    layer = traced.get(f"{prefix}.{steering.hookpoint}")
    with torch.no_grad(), traced.trace(PROMPTS[0]):
        layer.output = steering.apply(layer.output, 2.0)
        logits = traced.lm_head.output[:, -1].save()
    answer = generate(
        model, PROMPTS[0], steering, [2.0], Sampling(max_new_tokens=1), tokenizer=tokenizer
    ).answers[0][0]
    assert answer.tokens == [int(logits.argmax())] or answer.ended


@pytest.mark.filterwarnings("ignore:.*was never reached")
def test_a_users_own_generation_in_a_trace_gives_the_same(model, tokenizer, steering):
    traced = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    layer = traced.get(f"{model.base_model_prefix}.{steering.hookpoint}")
    options = {"max_new_tokens": 8, "do_sample": False, "repetition_penalty": 1.0}
    with torch.no_grad(), traced.generate(**options) as tracer:
        with tracer.invoke(PROMPTS[1]):
            for _ in tracer.iter[:]:
                layer.output = steering.apply(layer.output, 2.0)
        with tracer.invoke():
            ids = tracer.result.save()
    found = generate(model, PROMPTS[1], steering, [2.0], Sampling(8), tokenizer=tokenizer)
    tokens = found.answers[0][0].tokens
    assert ids[0, len(found.prompt_tokens[0]) :].tolist()[: len(tokens)] == tokens


def test_several_directions_have_strengths_of_their_own(model, tokenizer, steering):
    other = Steering(torch.randn(WIDTH), steering.hookpoint.replace("1", "2"), 3.0)
    doses = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]
    found = generate(model, PROMPTS, [steering, other], doses, SHORT, tokenizer=tokenizer)
    alone = generate(model, PROMPTS, steering, [0.0, 1.0], SHORT, tokenizer=tokenizer)
    for p in range(len(PROMPTS)):
        assert found.texts(p)[:2] == alone.texts(p)
    assert found.strengths == doses


def test_batches_of_any_size_give_the_same(model, tokenizer, steering):
    sampling = Sampling(max_new_tokens=8, temperature=0.7, top_p=0.9)
    options = {"sampling": sampling, "tokenizer": tokenizer}
    whole = generate(model, PROMPTS, steering, STRENGTHS, **options)
    for size in (1, 4):
        parts = generate(
            model, PROMPTS, steering, STRENGTHS, **options, answering=Answering(batch_size=size)
        )
        assert parts.answers == whole.answers


@pytest.fixture(scope="module")
def llama(tokenizer):
    return tiny_model("llama", causal_lm=True, vocab_size=len(tokenizer))


@pytest.fixture(scope="module")
def push():
    return Steering(torch.randn(WIDTH, generator=torch.Generator().manual_seed(1)), "layers.1")


def test_sampling_is_the_same_for_one_seed_and_differs_for_others(llama, tokenizer, push):
    def texts(seed):
        sampling = Sampling(max_new_tokens=12, temperature=1.0, seed=seed)
        return generate(llama, PROMPTS, push, [0.0], sampling, tokenizer=tokenizer).texts()

    assert texts(0) == texts(0)
    assert texts(0) != texts(1)


def test_strengths_share_their_noise(llama, tokenizer, push):
    """Two strengths that hardly differ take the same samples, in spite of a high temperature."""
    sampling = Sampling(max_new_tokens=20, temperature=2.0)
    found = generate(llama, PROMPTS, push, [0.0, 1e-6], sampling, tokenizer=tokenizer)
    for first, second in found.answers:
        assert first.tokens == second.tokens


def test_equal_prompts_get_samples_of_their_own(llama, tokenizer, push):
    sampling = Sampling(max_new_tokens=20, temperature=1.0)
    found = generate(llama, ["She", "She"], push, [0.0], sampling, tokenizer=tokenizer)
    assert found.texts(0) != found.texts(1)


def test_samples_follow_the_models_distribution(llama, tokenizer, push):
    """First tokens of 4,000 samples against the probabilities at temperature 0.7 and top-p 0.9."""
    sampling = Sampling(max_new_tokens=1, temperature=0.7, top_p=0.9)
    prompts = ["The quick"] * 4000
    found = generate(
        llama,
        prompts,
        push,
        [0.0],
        sampling,
        tokenizer=tokenizer,
        answering=Answering(batch_size=1000),
    )
    with torch.no_grad():
        ids = torch.tensor([tokenizer("The quick")["input_ids"]])
        probabilities = (llama(input_ids=ids).logits[0, -1].float() / 0.7).softmax(0)
    ordered, places = probabilities.sort(descending=True)
    kept = places[: int((ordered.cumsum(0) < 0.9).sum()) + 1]
    expected = torch.zeros_like(probabilities)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    ends = sorted(end_tokens(llama, tokenizer))  # which answers do not hold
    expected[ends[0]], expected[ends[1:]] = expected[ends].sum(), 0
    counts = torch.zeros_like(expected)
    for row in found.answers:
        counts[row[0].tokens[0] if row[0].tokens else ends[0]] += 1
    assert (counts[expected == 0] == 0).all()
    assert (counts / 4000 - expected).abs().max() < 0.03
    assert expected.max() < 0.9  # or the comparison would say nothing


def test_chat_templates_are_used_where_there_are_some(llama, push):
    tokenizer = byte_level_tokenizer(vocab_size=400, bos=True, chat_template=CHATML)
    found = generate(llama, "Hello", push, [0.0], Sampling(2), tokenizer=tokenizer)
    assert "<|im_start|>user\nHello<|im_end|>" in tokenizer.decode(found.prompt_tokens[0])
    plain = generate(
        llama,
        "Hello",
        push,
        [0.0],
        Sampling(2),
        tokenizer=tokenizer,
        answering=Answering(chat=False),
    )
    assert tokenizer.decode(plain.prompt_tokens[0]) == "<s>Hello"


def test_conversations_are_prompts_too(llama, push):
    tokenizer = byte_level_tokenizer(vocab_size=400, bos=True, chat_template=CHATML)
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    found = generate(llama, talk, push, [0.0, 1.0], Sampling(2), tokenizer=tokenizer)
    assert len(found.answers) == 1 and len(found.answers[0]) == 2
    assert "Be kind." in tokenizer.decode(found.prompt_tokens[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": ["x" * 2000]}, "context"),
        ({"strengths": []}, "strengths"),
        ({"strengths": [[1.0, 2.0]]}, "1 directions"),
        ({"strengths": [float("nan")]}, "finite"),
        ({"tokenizer": None}, "tokenizer"),
        ({"model": object()}, "Cannot steer"),
        ({"answering": Answering(batch_size=0)}, "batch_size"),
    ],
)
def test_wrong_use_is_refused(llama, tokenizer, push, options, message):
    arguments = {"model": llama, "prompts": ["She"], "steering": push, "strengths": [1.0]}
    arguments |= {"sampling": SHORT, "tokenizer": tokenizer} | options
    with pytest.raises(ValueError, match=message):
        generate(**arguments)


def test_a_base_model_without_head_is_refused(tokenizer, push):
    with pytest.raises(ValueError, match="AutoModelForCausalLM"):
        generate(tiny_model("llama"), "She", push, [1.0], SHORT, tokenizer=tokenizer)


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": 0}, {"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_impossible_sampling_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampling(**options)
