"""What steering does to activations and to whole models, against hooks written by hand."""

import pytest
import torch

from sparsify_crosscoder.crosscoders import DedicatedFeatureCrosscoder, DFCConfig
from sparsify_crosscoder.interventions.steering import SteeredBatch, Steering, steered
from tests.support.models import tiny_model

KINDS = ("llama", "gpt2", "gemma3", "qwen3", "gpt_oss")
WIDTH = 32


def layers_of(kind: str) -> str:
    return "h" if kind == "gpt2" else "layers"


def direction(seed: int = 0, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def logits(model, ids, mask=None):
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def test_addition_is_what_the_paper_says():
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    steering = Steering(torch.tensor([0.0, 2.0]), "layers.0", scale=0.5)
    assert steering.apply(x, 3.0).tolist() == [[[1.0, 5.0], [3.0, 7.0]]]


def test_every_row_has_its_own_strength():
    x = torch.zeros(3, 2, 2)
    steering = Steering(torch.tensor([1.0, 0.0]), "layers.0")
    out = steering.apply(x, torch.tensor([0.0, 1.0, -2.0]))
    assert out[:, 0, 0].tolist() == [0.0, 1.0, -2.0]
    assert out[:, :, 1].eq(0).all()


def test_ablation_removes_the_direction_and_nothing_else():
    x, vector = torch.randn(2, 3, WIDTH), direction()
    out = Steering(vector, "layers.0", mode="ablate").apply(x, 1.0)
    torch.testing.assert_close(out @ vector, torch.zeros(2, 3), atol=1e-4, rtol=0)
    change = out - x
    along = (change @ vector)[..., None] * vector / vector.square().sum()
    torch.testing.assert_close(change, along, atol=1e-5, rtol=1e-5)


def test_ablation_at_half_strength_leaves_half():
    x, vector = torch.randn(2, 3, WIDTH), direction()
    out = Steering(vector, "layers.0", mode="ablate").apply(x, 0.5)
    torch.testing.assert_close(out @ vector, x @ vector / 2, atol=1e-4, rtol=1e-4)


def test_a_center_is_where_the_direction_is_absent():
    vector, center = direction(), direction(1)
    steering = Steering(vector, "layers.0", mode="ablate", center=center)
    out = steering.apply(center + 3 * vector.expand(1, 1, -1), 1.0)
    torch.testing.assert_close(out[0, 0], center, atol=1e-5, rtol=1e-5)


def test_clamping_gives_what_adding_to_the_center_gives():
    vector, center = direction(), direction(1)
    clamp = Steering(vector, "layers.0", scale=2.0, mode="clamp", center=center)
    add = Steering(vector, "layers.0", scale=2.0)
    start = center + 7 * vector.expand(1, 1, -1)
    torch.testing.assert_close(
        clamp.apply(start, 1.5), add.apply(center.expand(1, 1, -1), 1.5), atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("mode", ["add", "ablate", "clamp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strength_0_changes_no_bit(mode, dtype):
    x = torch.randn(2, 3, WIDTH).to(dtype)
    x[0, 0, 0] = -0.0
    out = Steering(direction() * 100, "layers.0", mode=mode).apply(x, torch.tensor([0.0, 1.0]))
    assert out[0].view(torch.uint8).equal(x[0].view(torch.uint8))
    assert not out[1].equal(x[1])


def test_outputs_that_are_tuples_keep_what_follows():
    x, rest = torch.zeros(1, 1, 2), object()
    out = Steering(torch.ones(2), "layers.0").apply((x, rest), 1.0)
    assert isinstance(out, tuple)
    assert out[0].tolist() == [[[1.0, 1.0]]]
    assert out[1] is rest


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("all", [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]),
        ("prompt", [[0, 0, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]]),
        ("generated", [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1]]),
        ((0, 1), [[0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]),
        ((1, 3), [[0, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 0]]),
        ((-1, 3), [[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]]),
        ((-3, -1), [[0, 0, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0]]),
    ],
)
def test_spans_count_from_where_each_prompt_begins(tokens, expected):
    """Two prompts of two and four tokens, read at once, and two tokens generated one by one."""
    model = tiny_model("llama", causal_lm=True)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    steering = Steering(torch.ones(WIDTH), "layers.0", tokens=tokens)
    push = SteeredBatch([steering], torch.ones(1, 1), mask).pushes(model)["layers.0"]
    parts = [push(torch.zeros(2, columns, WIDTH))[..., 0] for columns in (4, 1, 1)]
    assert torch.cat(parts, 1).int().tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_steered_model_is_one_with_a_hook_written_by_hand(kind):
    model = tiny_model(kind, causal_lm=True)
    ids = torch.randint(1, 128, (2, 12), generator=torch.Generator().manual_seed(0))
    layer = f"{layers_of(kind)}.1"
    vector, plain = direction(), logits(model, ids)
    with steered(model, Steering(vector, layer, scale=2.0), 1.5):
        ours = logits(model, ids)

    def add(module, args, output):
        return output + 3 * vector

    handle = model.base_model.get_submodule(layer).register_forward_hook(add)
    by_hand = logits(model, ids)
    handle.remove()
    torch.testing.assert_close(ours, by_hand, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours, plain, atol=1e-2)
    assert logits(model, ids).equal(plain)  # the hook is gone


@pytest.mark.parametrize("kind", KINDS)
def test_strength_0_is_the_model_itself(kind):
    model = tiny_model(kind, causal_lm=True)
    ids = torch.randint(1, 128, (2, 12), generator=torch.Generator().manual_seed(0))
    with steered(model, Steering(direction(), f"{layers_of(kind)}.1"), 0.0):
        assert logits(model, ids).equal(tiny_logits := logits(model, ids))
    assert tiny_logits.equal(logits(model, ids))


def test_several_directions_act_together_wherever_they_are():
    model = tiny_model("llama", causal_lm=True)
    ids = torch.randint(1, 128, (1, 8))
    first, second = Steering(direction(0), "layers.2"), Steering(direction(1), "layers.0")
    with steered(model, [first, second], [2.0, -1.0]):
        together = logits(model, ids)
    with steered(model, second, -1.0), steered(model, first, 2.0):
        nested = logits(model, ids)
    torch.testing.assert_close(together, nested)


def test_directions_of_one_place_act_in_turn():
    model = tiny_model("llama", causal_lm=True)
    ids = torch.randint(1, 128, (1, 8))
    add = Steering(direction(0), "layers.1")
    ablate = Steering(direction(0), "layers.1", mode="ablate")
    with steered(model, [add, ablate], [5.0, 1.0]):
        added_first = logits(model, ids)
    with steered(model, ablate, 1.0):
        only_ablated = logits(model, ids)
    torch.testing.assert_close(added_first, only_ablated, atol=1e-4, rtol=1e-4)


@pytest.fixture
def crosscoder():
    torch.manual_seed(0)
    cfg = DFCConfig(num_latents=20, k=4, exclusive_fractions=[0.2, 0.2])
    sources = [
        {"name": "a", "hookpoint": "layers.1", "width": 8},
        {"name": "b", "hookpoint": "layers.2", "width": 6},
    ]
    crosscoder = DedicatedFeatureCrosscoder([8, 6], cfg, sources=sources)
    means = [torch.arange(8.0), torch.ones(6)]
    crosscoder.set_normalization(means, torch.tensor([0.5, 4.0]))
    return crosscoder


def test_a_latent_steers_with_its_decoder_in_raw_space(crosscoder):
    latent = crosscoder.partition.exclusive(1)[0]
    steering = Steering.of_latent(crosscoder, latent, 1, s_max=15.0)
    assert steering.hookpoint == "layers.2"
    # In normalised space, where x' = (x - mean) * factor, that is s_max times the decoder.
    moved = steering.apply(torch.zeros(1, 1, 6), 1.0)[0, 0] * 4.0
    torch.testing.assert_close(moved, 15.0 * crosscoder.decoder(1)[latent].detach())
    assert steering.center is not None and steering.center.tolist() == [1.0] * 6


def test_a_latent_cannot_steer_the_model_it_does_not_write_to(crosscoder):
    latent = crosscoder.partition.exclusive(1)[0]
    with pytest.raises(ValueError, match="exclusive to another model"):
        Steering.of_latent(crosscoder, latent, 0, s_max=1.0)


@pytest.mark.parametrize(("latent", "s_max"), [(20, 1.0), (-1, 1.0), (3, 0.0)])
def test_latents_that_are_not_there_or_never_fire_are_refused(crosscoder, latent, s_max):
    with pytest.raises(ValueError, match=r"[Ll]atent"):
        Steering.of_latent(crosscoder, latent, 0, s_max=s_max)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vector": torch.zeros(4)}, "other than 0"),
        ({"vector": torch.ones(2, 2)}, "one finite direction"),
        ({"vector": torch.tensor([1.0, torch.nan])}, "finite"),
        ({"mode": "multiply"}, "add, ablate or clamp"),
        ({"tokens": "some"}, "all, prompt, generated"),
        ({"scale": float("inf")}, "scale"),
        ({"center": torch.zeros(3)}, "center"),
    ],
)
def test_bad_directions_are_refused(change, message):
    options = {"vector": torch.ones(4), "hookpoint": "layers.0"}
    with pytest.raises(ValueError, match=message):
        Steering(**{**options, **change})


def test_a_vector_of_another_model_is_refused_with_both_widths():
    model = tiny_model("llama", causal_lm=True)
    with (
        pytest.raises(ValueError, match=r"width 7.*gives 32"),
        steered(model, Steering(torch.ones(7), "layers.0"), 1.0),
    ):
        logits(model, torch.ones(1, 2, dtype=torch.long))


def test_an_unknown_hookpoint_is_refused():
    model = tiny_model("llama", causal_lm=True)
    with (
        pytest.raises(ValueError, match=r"no module 'layers\.9'"),
        steered(model, Steering(torch.ones(WIDTH), "layers.9"), 1.0),
    ):
        pass


def test_some_tokens_need_the_prompts_mask():
    model = tiny_model("llama", causal_lm=True)
    with (
        pytest.raises(ValueError, match="attention mask"),
        steered(model, Steering(torch.ones(WIDTH), "layers.0", tokens="generated"), 1.0),
    ):
        pass
