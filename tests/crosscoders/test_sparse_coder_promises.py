"""What sparsify's SparseCoder has, a Crosscoder has too, or refuses with the reason."""

import inspect

import pytest
import torch
from sparsify import SparseCoder, SparseCoderConfig
from sparsify.fused_encoder import EncoderOutput
from sparsify.sparse_coder import ForwardOutput

from sparsify_crosscoder import Crosscoder
from sparsify_crosscoder.registry import architecture_names
from tests.support.crosscoders import make

KEPT = {
    *("cfg", "d_in", "num_latents", "device", "dtype"),
    *("encoder", "b_dec", "W_dec", "W_skip"),
    *("encode", "decode", "forward"),
    *("save_to_disk", "load_from_disk", "load_many", "load_from_hub"),
}
REFUSED = {"set_decoder_norm_to_unit_norm", "remove_gradient_parallel_to_decoder_directions"}

each_architecture = pytest.mark.parametrize("arch", architecture_names())


def public_names(coder: SparseCoder) -> set[str]:
    """Attributes and methods that are SparseCoder's own, not those of every module."""
    of_module = set(dir(torch.nn.Linear(1, 1)))
    parts = {*coder._parameters, *coder._modules, *coder._buffers}
    found = {*vars(type(coder)), *vars(coder), *parts} - of_module | {"forward"}
    return {name for name in found if not name.startswith("_")}


def test_every_promise_is_looked_at_here():
    plain = SparseCoder(3, SparseCoderConfig(num_latents=5, k=2))
    assert public_names(plain) == KEPT | REFUSED


@each_architecture
def test_a_crosscoder_has_every_attribute(arch):
    crosscoder = make(arch, {})
    assert isinstance(crosscoder, SparseCoder)
    assert all(hasattr(crosscoder, name) for name in KEPT | REFUSED)
    assert (crosscoder.d_in, crosscoder.num_latents) == (sum(crosscoder.d_sources), 40)
    assert crosscoder.device.type == "cpu" and crosscoder.dtype == torch.float64
    assert crosscoder.cfg.k == 3 and crosscoder.W_skip is None
    assert crosscoder.b_dec.shape == (crosscoder.d_in,)


@each_architecture
def test_weights_are_the_matrices_of_the_checkpoint_under_their_names(arch):
    crosscoder = make(arch, {})
    crosscoder.encoder.bias.data.normal_()
    state = crosscoder.state_dict()
    matrices = {"encoder.weight": crosscoder.encoder.weight, "W_dec": crosscoder.W_dec}
    for name, matrix in matrices.items():
        assert matrix.shape == (40, crosscoder.d_in)
        assert torch.equal(matrix, state[name])
    assert torch.equal(crosscoder.encoder.bias, state["encoder.bias"])


@pytest.mark.parametrize("arch", ["crosscoder", "dfc", "dsf"])
def test_pre_activations_are_the_product_with_the_encoders_weight(arch):
    crosscoder = make(arch, {})
    crosscoder.encoder.bias.data.normal_()
    x = torch.randn(6, crosscoder.d_in, dtype=torch.float64)
    expected = (x @ crosscoder.encoder.weight.T + crosscoder.encoder.bias).relu()
    torch.testing.assert_close(crosscoder.encode(x).pre_acts, expected)


def test_the_encoders_weight_cannot_be_replaced_unnoticed():
    crosscoder = make("dfc", {})
    with pytest.raises(AttributeError):
        crosscoder.encoder.weight = torch.zeros(40, 12)


@each_architecture
def test_encoding_decoding_and_the_forward_pass_give_sparsifys_outputs(arch):
    crosscoder = make(arch, {})
    x = torch.randn(6, crosscoder.d_in, dtype=torch.float64)
    encoded = crosscoder.encode(x)
    assert isinstance(encoded, EncoderOutput)
    out = crosscoder(x, dead_mask=torch.rand(40) < 0.5)
    assert isinstance(out, ForwardOutput)
    decoded = crosscoder.decode(encoded.top_acts, encoded.top_indices)
    torch.testing.assert_close(decoded, out.sae_out)
    torch.testing.assert_close(
        decoded,
        encoded.top_acts.new_zeros(6, 40).scatter(1, encoded.top_indices, encoded.top_acts)
        @ crosscoder.W_dec
        + crosscoder.b_dec,
    )
    assert 0 < out.fvu < 1.5 and out.auxk_loss > 0 and out.multi_topk_fvu == 0


@pytest.mark.parametrize("method", ["forward", "encode", "decode", *sorted(REFUSED)])
def test_methods_take_what_sparsifys_take(method):
    theirs = inspect.signature(getattr(SparseCoder, method)).parameters
    ours = inspect.signature(getattr(Crosscoder, method)).parameters
    assert list(ours)[: len(theirs)] == list(theirs)


@each_architecture
@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("set_decoder_norm_to_unit_norm", "relative decoder norms"),
        ("remove_gradient_parallel_to_decoder_directions", "which a crosscoder learns"),
    ],
)
def test_what_would_undo_decoder_norms_is_refused(arch, method, reason):
    crosscoder = make(arch, {})
    before = crosscoder.W_dec.clone()
    with pytest.raises(ValueError, match=reason):
        getattr(crosscoder, method)()
    assert torch.equal(crosscoder.W_dec, before)


@each_architecture
def test_loading_without_the_decoder_is_refused(arch, tmp_path):
    crosscoder = make(arch, {})
    crosscoder.save_to_disk(tmp_path / "one")
    for load in (
        lambda **options: Crosscoder.load_from_disk(tmp_path / "one", **options),
        lambda **options: Crosscoder.load_many(str(tmp_path), local=True, **options)["one"],
        lambda **options: Crosscoder.load_from_hub(str(tmp_path), "one", **options),
    ):
        assert torch.equal(load(decoder=True).W_dec, crosscoder.W_dec)
        with pytest.raises(ValueError, match="leave decoder=True"):
            load(decoder=False)
