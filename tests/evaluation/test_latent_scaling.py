import pytest
import torch

from sparsify_crosscoder import DedicatedFeatureCrosscoder, DFCConfig
from sparsify_crosscoder.evaluation.latent_moments import collect
from sparsify_crosscoder.evaluation.latent_scaling import (
    calibrated,
    decoder_scaling,
    latent_scaling,
)
from sparsify_crosscoder.store.tensor_stream import TensorStream

PAIRS = 8_000
SHRUNK, DECOUPLED, OWN = range(3)


@pytest.fixture
def crosscoder():
    """Three latents exclusive to the first source, one of the second that stands for DECOUPLED."""
    cfg = DFCConfig(num_latents=20, k=4, exclusive_fractions=[0.25, 0.25], screening="exact")
    crosscoder = DedicatedFeatureCrosscoder([6, 5], cfg).eval()
    with torch.no_grad():
        for weight in (*crosscoder.encoder.weights, *crosscoder.decoders):
            weight.zero_()
        for latent in (SHRUNK, DECOUPLED, OWN):
            crosscoder.encoder.weights[0][latent, latent] = 1.0
            crosscoder.decoders[0][latent, latent] = 1.0
        crosscoder.encoder.weights[1][0, DECOUPLED] = crosscoder.decoders[1][0, DECOUPLED] = 1.0
        crosscoder.encoder.bias[:10] = -0.3
        crosscoder.b_dec[:3] = 0.0
        crosscoder.threshold.fill_(1e-3)
    return crosscoder


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    events = (torch.rand(PAIRS, 3, generator=generator) < 0.1) * 4.0
    a, b = (0.02 * torch.randn(PAIRS, d, generator=generator) for d in (6, 5))
    a[:, :3] += events
    b[:, SHRUNK] += 0.5 * events[:, SHRUNK]  # the second source has it at half the size
    b[:, DECOUPLED] += events[:, DECOUPLED]
    return [a, b]


def test_what_the_other_source_has_is_found_in_its_error_or_in_its_reconstruction(
    crosscoder, pairs
):
    found = latent_scaling(crosscoder, TensorStream(pairs), torch.arange(3), outlier_multiple=0)
    # Activations are 3.7 for an event of 4.
    scale = 4 / 3.7
    torch.testing.assert_close(
        found.error[:, 0], torch.full((3,), scale, dtype=torch.float64), atol=0.01, rtol=0
    )
    sources = torch.zeros(3, dtype=torch.long)
    error = found.ratios(sources)
    by_error, by_others = error.value, found.ratios(sources, "reconstruction").value
    assert by_error[SHRUNK] == pytest.approx(0.5, abs=0.01)
    low, high = error.interval(SHRUNK)
    assert 0.45 < low < 0.5 * 1.005 and 0.5 * 0.995 < high < 0.55
    assert by_others[SHRUNK] < 0.15  # only by chance, when the decoupled one is active too
    # The second source's latent makes of it what this one does.
    assert by_others[DECOUPLED] == pytest.approx(1, abs=0.02)
    assert by_error[DECOUPLED] == pytest.approx(0.3 / 4, abs=0.02)
    assert by_error[OWN] < 0.02 and by_others[OWN] < 0.15
    assert found.firings.tolist() == [int((pairs[0][:, i] > 0.3).sum()) for i in range(3)]


def test_noise_alone_has_no_size(crosscoder, pairs):
    noise = [pairs[0], torch.randn(PAIRS, 5, generator=torch.Generator().manual_seed(5))]
    found = latent_scaling(crosscoder, TensorStream(noise), torch.arange(3), outlier_multiple=0)
    assert (found.error[:, 1] < 0.03).all()


def moments_of(crosscoder, pairs):
    return collect(crosscoder, TensorStream(pairs), torch.arange(3), outlier_multiple=0)


def test_in_a_shared_basis_the_decoder_itself_is_scaled(crosscoder, pairs):
    cfg = DFCConfig(num_latents=20, k=4, exclusive_fractions=[0.25, 0.25], screening="exact")
    shared = DedicatedFeatureCrosscoder([6, 6], cfg).eval()
    with torch.no_grad():
        for weight in (*shared.encoder.weights, *shared.decoders):
            weight.zero_()
        for latent in (SHRUNK, DECOUPLED, OWN):
            shared.encoder.weights[0][latent, latent] = shared.decoders[0][latent, latent] = 1.0
        shared.encoder.bias[:10] = -0.3
        shared.threshold.fill_(1e-3)
    b = torch.cat([pairs[1], torch.zeros(PAIRS, 1)], 1)
    sources = torch.zeros(3, dtype=torch.long)
    latents = torch.arange(3)
    moments = moments_of(shared, [pairs[0], b])
    found = decoder_scaling(shared, moments, latents, sources)
    z = shared.encode_sparse([pairs[0], b]).to_dense()[:, SHRUNK].double()
    for source, y in ((0, pairs[0][:, SHRUNK]), (1, b[:, SHRUNK])):
        beta = (z * y).sum() / z.square().sum()  # nothing else makes any of this column
        assert found.error[SHRUNK, source] == pytest.approx(beta.item(), rel=1e-3)
    ratio = found.ratios(sources)
    assert ratio.value[SHRUNK] == pytest.approx(0.5, abs=0.01)
    assert ratio.value[OWN] < 0.05
    with pytest.raises(ValueError, match="same width"):
        decoder_scaling(crosscoder, moments_of(crosscoder, pairs), latents, sources)


def test_cut_offs_leave_one_null_in_twenty_below():
    ratios = torch.linspace(0, 1, 101)
    assert calibrated(ratios, ratios * 2) == pytest.approx((0.05, 0.1))
    with pytest.raises(ValueError, match="20 latents"):
        calibrated(ratios[:19], ratios[:19])
