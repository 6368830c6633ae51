"""What the list of differences finds where it is known what differs, and where nothing does."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsify_crosscoder import Crosscoder, CrosscoderConfig, RDFCConfig
from sparsify_crosscoder.crosscoders import ResidualDedicatedFeatureCrosscoder
from sparsify_crosscoder.evaluation.differences import (
    DifferenceConfig,
    Differences,
    differences_of,
)
from sparsify_crosscoder.evaluation.false_exclusives import FilterConfig
from sparsify_crosscoder.evaluation.filter import filter_crosscoder
from sparsify_crosscoder.evaluation.noted_pairs import Beside, held_pairs
from sparsify_crosscoder.store.normalization import estimate_normalization
from sparsify_crosscoder.store.tensor_stream import TensorStream
from sparsify_crosscoder.text.roles import NO_WRITER, Role

PAIRS, WIDTH, CONCEPTS, TEXT = 6_000, 24, 12, 40
TOKEN = 0  # the rarest concept, on some 2% of the pairs
NAMES = ["base", "tuned"]


class World:
    """Sparse combinations of concepts, as a base model has them."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.directions = torch.linalg.qr(self.normal(WIDTH, WIDTH)).Q[:CONCEPTS]
        often = torch.linspace(0.02, 0.15, CONCEPTS)
        self.on = torch.rand(PAIRS, CONCEPTS, generator=self.generator) < often
        strength = 2 + torch.rand(PAIRS, CONCEPTS, generator=self.generator)
        self.base = (self.on * strength) @ self.directions + self.normal(WIDTH)
        self.base += 0.1 * self.normal(PAIRS, WIDTH)
        centred = self.base - self.base.mean(0)
        self.change = F.normalize(self.normal(WIDTH), dim=0) * centred.norm(dim=1).median() / 2

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def changed(self, what: str) -> Tensor:
        """The same after a change, with a little noise."""
        tuned = self.base.clone()
        if what == "isolated":
            self.where = torch.rand(PAIRS, generator=self.generator) < 0.02
            tuned += self.where[:, None] * self.change
        if what == "token":
            tuned += self.on[:, [TOKEN]] * self.change
        if what == "mean":
            tuned += self.change
        if what == "map":
            along = (self.base - self.base.mean(0)) @ F.normalize(self.normal(WIDTH), dim=0)
            tuned += (along / along.std())[:, None] * self.change
        if what == "rotated":
            tuned = tuned @ torch.linalg.qr(self.normal(WIDTH, WIDTH)).Q
        return tuned + 0.01 * self.normal(PAIRS, WIDTH)

    def crosscoder(self, tuned: Tensor) -> Crosscoder:
        """A standard one with a shared latent for every concept."""
        cfg = CrosscoderConfig(num_latents=CONCEPTS, k=2, screening="exact")
        crosscoder = Crosscoder([WIDTH, WIDTH], cfg, sources=sources()).eval()
        means, factors = estimate_normalization([self.base, tuned])
        crosscoder.set_normalization(means, factors)
        decoders = []
        for x, factor in zip((self.base, tuned), factors, strict=True):
            present = [x[on].mean(0) - x[~on].mean(0) for on in self.on.T]
            decoders.append(torch.stack(present) * factor)
        with torch.no_grad():
            decoder = torch.cat(decoders, 1)
            crosscoder.decoders[0].copy_(decoder)
            crosscoder.encoder.weights[0].copy_(torch.linalg.pinv(decoder).T)
            crosscoder.encoder.bias.fill_(-0.3)
            crosscoder.threshold.fill_(1e-3)
        return crosscoder


def sources() -> list[dict]:
    return [{"name": name, "hookpoint": "layers.1", "width": WIDTH} for name in NAMES]


def listed(crosscoder: Crosscoder, activations: list[Tensor], **options) -> Differences:
    stream = TensorStream(activations)
    filtered = filter_crosscoder(crosscoder, stream, FilterConfig(pairs=PAIRS, min_firings=20))
    texts = options.pop("texts", torch.arange(PAIRS) // TEXT)
    pairs = held_pairs(activations, texts, options.pop("kl", None))
    pairs = replace(pairs, roles=options.pop("roles", None))
    return differences_of(crosscoder, pairs, filtered, DifferenceConfig(**options))


def compared(what: str) -> tuple[World, Differences]:
    world = World()
    tuned = world.changed(what)
    return world, listed(world.crosscoder(tuned), [world.base, tuned])


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.float(), b, dim=0))


def test_a_shared_latent_that_moves_the_second_model_is_first_and_turned():
    world, found = compared("token")
    first = found.findings[0]
    assert (first.kind, first.verdict) == ("shared", "turned") or first.verdict == "grew"
    assert (first.latent, first.source) == (TOKEN, 1)
    assert cosine(first.direction, world.change) > 0.95
    assert first.share > 0.5 / WIDTH and first.effect > 5
    assert first.texts > 20 and first.firings == pytest.approx(int(world.on[:, TOKEN].sum()), 0.1)


def test_a_constant_shift_is_first_and_called_one():
    world, found = compared("mean")
    first = found.findings[0]
    assert (first.kind, first.latent, first.source) == ("mean", None, 1)
    assert first.score > 0.9 and cosine(first.direction, world.change) > 0.99
    assert len(found.findings) == 1


def test_a_linear_change_of_rank_one_is_one_entry_with_what_it_writes():
    world, found = compared("map")
    first = found.findings[0]
    assert (first.kind, first.latent) == ("map", None)
    assert abs(cosine(first.direction, world.change)) > 0.99
    assert first.reads is not None
    read = (world.base - world.base.mean(0)) @ first.reads
    assert float(read.std()) == pytest.approx(float(first.direction.norm()), rel=0.1)
    assert all(member.kind != "map" for member in first.members)


@pytest.mark.parametrize("owner", [0, 1])
def test_an_isolated_direction_is_first_and_an_exclusive_latent_of_its_model(owner):
    """Latents of both sides read it, as what one has and as what the other lacks."""
    world = World()
    tuned = world.changed("isolated")
    activations = [tuned, world.base] if owner == 0 else [world.base, tuned]
    cfg = RDFCConfig(num_latents=40, k=3, exclusive_fractions=[0.1, 0.1], screening="exact")
    torch.manual_seed(0)
    crosscoder = ResidualDedicatedFeatureCrosscoder([WIDTH, WIDTH], cfg, sources=sources())
    crosscoder.set_normalization(*estimate_normalization(activations))
    normalised = crosscoder.normalize(activations)
    crosscoder.prepare(lambda count: [normalised[:count]])
    adam = torch.optim.Adam(crosscoder.parameters(), lr=3e-3)
    crosscoder.train()
    for step in range(120):
        rows = torch.arange(step * 200, (step + 1) * 200) % PAIRS
        out = crosscoder(normalised[rows], normalized=True)
        out.loss.backward()
        adam.step()
        adam.zero_grad()
        crosscoder.update_threshold(out.cuts, 0.9)
    kl = 0.1 + world.where.float()
    found = listed(crosscoder.eval(), activations, kl=kl)
    first = found.findings[0]
    assert (first.kind, first.source) == ("exclusive", owner)
    assert first.latent in crosscoder.partition.exclusive(owner)
    assert cosine(first.direction, world.change) > 0.9
    assert first.kl is not None and first.kl == pytest.approx(1.1, abs=0.1)
    expected = (first.kl - float(kl.mean())) * first.firings / PAIRS
    assert first.excess_kl == pytest.approx(expected)


def test_what_is_read_in_a_prompt_counts_by_what_is_answered():
    """Of two tokens that move the second model alike, the one before other answers comes first."""
    world = World()
    changes = F.normalize(world.normal(2, WIDTH), dim=1) * world.change.norm()
    read = world.on[:, :2]
    tuned = world.base + read.float() @ changes + 0.01 * world.normal(PAIRS, WIDTH)
    texts = torch.arange(PAIRS) // 8
    loud = torch.zeros(PAIRS // 8, dtype=torch.bool)
    loud[texts[read[:, 1]]] = True
    roles = torch.where(read.any(1), Role.USER, Role.ASSISTANT)
    kl = torch.where(read.any(1), 0.3, 0.02 + loud[texts])
    crosscoder = world.crosscoder(tuned)
    found = listed(crosscoder, [world.base, tuned], kl=kl, roles=roles, texts=texts)
    first, second = found.findings[:2]
    assert (first.latent, second.latent) == (1, 0)
    assert first.kl == pytest.approx(0.3) and second.kl == pytest.approx(0.3)
    assert first.kl_heard == pytest.approx(1.02, abs=0.02)
    assert (
        second.kl_heard < 0.4 and first.score / first.strength > 3 * second.score / second.strength
    )
    by_pairs = listed(crosscoder, [world.base, tuned], kl=kl, texts=texts)
    assert all(one.kl_heard == pytest.approx(one.kl) for one in by_pairs.findings)


def test_what_is_heard_of_a_latent_is_the_mean_over_its_texts(monkeypatch):
    """However the pairs are cut into chunks."""
    world = World()
    tuned = world.changed("token")
    generator = torch.Generator().manual_seed(1)
    kl = torch.rand(PAIRS, generator=generator)
    roles = torch.where(torch.rand(PAIRS, generator=generator) < 0.5, Role.USER, Role.ASSISTANT)
    monkeypatch.setattr("sparsify_crosscoder.evaluation.noted_pairs.BATCH_PAIRS", 7 * TEXT // 4)
    found = listed(world.crosscoder(tuned), [world.base, tuned], kl=kl, roles=roles)
    numbers, texts = found.found.pairs.numbers, found.found.texts
    said = roles[numbers] == Role.ASSISTANT
    answers = {int(t): kl[numbers][said & (texts == t)].mean() for t in texts.unique()}
    for one in found.entries:
        if one.latent is not None:
            rows = found.found.entries(torch.tensor([one.latent]))[2]
            expected = [answers[int(text)] for text in texts[rows].unique()]
            assert one.kl_heard == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


@pytest.mark.parametrize("what", ["nothing", "rotated"])
def test_where_nothing_differs_nothing_is_found(what):
    _, found = compared(what)
    assert found.findings == []
    shared = found.residuals[0].reference == 0
    assert shared == (what == "nothing")
    assert "no difference" in found.text(NAMES)


def test_pairs_of_other_texts_are_warned_of():
    """However few they are: a map through few pairs fits noise."""
    world = World()
    tuned = world.changed("rotated")
    crosscoder = world.crosscoder(tuned)
    for count in (PAIRS, 100):
        mixed = tuned[:count][torch.randperm(count, generator=world.generator)]
        found = listed(crosscoder, [world.base[:count], mixed], texts=torch.arange(count) // 2)
        assert all(one.left == pytest.approx(1, abs=0.15) for one in found.residuals)
        assert found.text(NAMES).count("warning: the other models tell") == 2
    same = listed(crosscoder, [world.base, tuned])
    assert all(one.left < 0.1 for one in same.residuals)
    assert "warning" not in same.text(NAMES)


def test_a_difference_that_hardly_changes_what_is_said_is_no_finding():
    world = World()
    tuned = world.changed("token")
    crosscoder, present = world.crosscoder(tuned), world.on[:, TOKEN]
    for kl, finding in ((0.1 * present, False), (0.3 * present, True)):
        found = listed(crosscoder, [world.base, tuned], kl=0.01 + kl)
        assert found.entries[0].latent == TOKEN
        assert found.entries[0].finding is finding


def test_the_list_is_words_and_plain_values():
    _, found = compared("token")
    told = json.loads(json.dumps(found.to_dict()))
    row = told["rows"][0]
    assert {"rank", "latent", "source", "kind", "verdict", "score", "q_value"} <= set(row)
    assert told["verdicts"] and "direction" not in row
    text = found.text(NAMES)
    assert f"tuned: latent {TOKEN}, shared" in text and "standard deviations" in text


def test_who_said_and_wrote_where_a_difference_is_present():
    world = World()
    tuned = world.changed("token")
    crosscoder = world.crosscoder(tuned)
    whole = [world.base, tuned]
    filtered = filter_crosscoder(crosscoder, TensorStream(whole), FilterConfig(pairs=PAIRS))
    # The second model wrote wherever the token is, the data set all else.
    writers = torch.where(world.on[:, TOKEN], 1, NO_WRITER)
    roles = torch.where(world.on[:, TOKEN], int(Role.ASSISTANT), int(Role.USER))
    pairs = replace(held_pairs(whole, torch.arange(PAIRS) // TEXT), roles=roles, writers=writers)
    found = differences_of(crosscoder, pairs, filtered, DifferenceConfig())
    first = found.findings[0]
    assert first.writers is not None and first.writers["1"] > 0.9
    assert first.roles is not None and first.roles["assistant"] > 0.9
    text = found.text(NAMES)
    assert "assistant" in text and "written by tuned" in text


def test_little_memory_takes_several_passes_to_the_same_list():
    world = World()
    tuned = world.changed("token")
    crosscoder = world.crosscoder(tuned)
    whole, parts = (listed(crosscoder, [world.base, tuned], memory=memory) for memory in (1e9, 3e3))
    assert [one.latent for one in whole.entries] == [one.latent for one in parts.entries]
    for one, other in zip(whole.entries, parts.entries, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4)


def test_what_a_reference_has_as_well_is_left_out():
    world = World()
    tuned = world.changed("token")
    crosscoder = world.crosscoder(tuned)
    whole = [world.base, tuned]
    filtered = filter_crosscoder(crosscoder, TensorStream(whole), FilterConfig(pairs=PAIRS))
    texts = torch.arange(PAIRS) // TEXT
    pairs = held_pairs(whole, texts)

    def beside(other: Tensor) -> Differences:
        reference = held_pairs([world.base, other], texts)
        return differences_of(crosscoder, pairs, filtered, DifferenceConfig(), reference)

    assert beside(tuned).findings == []
    alone = beside(world.base + 0.01 * world.normal(PAIRS, WIDTH)).findings
    assert [one.latent for one in alone] == [TOKEN]


def beside(world: World, tuned: Tensor, other: Tensor) -> Differences:
    """The list where `other` stands beside the tuned model, on the same pairs."""
    whole = [world.base, tuned]
    crosscoder = world.crosscoder(tuned)
    filtered = filter_crosscoder(crosscoder, TensorStream(whole), FilterConfig(pairs=PAIRS))
    pairs = held_pairs(whole, torch.arange(PAIRS) // TEXT)
    same = replace(pairs, beside=Beside(1, lambda index: other[index]))
    return differences_of(crosscoder, same, filtered, DifferenceConfig())


def test_a_model_in_a_sources_place_on_the_same_pairs_is_told_from_it_directly():
    world = World()
    tuned = world.changed("token")
    noisy = tuned + 0.01 * world.normal(PAIRS, WIDTH)
    assert beside(world, tuned, noisy).findings == []
    found = beside(world, tuned, world.base)
    [first, *_] = found.findings
    assert (first.latent, first.source, first.verdict) == (TOKEN, 1, "moved")
    assert cosine(first.direction, world.change) > 0.95
    assert first.direction.norm() == pytest.approx(float(world.change.norm()), rel=0.2)
    shifted = beside(world, tuned, tuned - world.change).findings[0]
    assert (shifted.kind, shifted.source) == ("mean", 1)
    assert cosine(shifted.direction, world.change) > 0.99
    assert "same pairs" in found.residuals[0].why


def test_beside_a_model_in_its_place_components_of_the_difference_are_listed():
    world = World()
    found = beside(world, world.changed("isolated"), world.base)
    first = found.findings[0]
    assert (first.kind, first.latent, first.source) == ("component", None, 1)
    assert cosine(first.direction, world.change) > 0.95
    column = found.column(first)
    assert column is not None and column >= CONCEPTS
    _, _, rows = found.found.entries(torch.tensor([column]))
    assert torch.equal(rows.sort().values, world.where.nonzero()[:, 0])
    assert first.firings == int(world.where.sum())
    assert "beyond the reference" in found.text(NAMES)
