from typing import Any

import pytest

from sparsify_crosscoder.harvest.families import kinship, same_family
from sparsify_crosscoder.harvest.model_identity import source_names
from sparsify_crosscoder.harvest.placement import Placement
from sparsify_crosscoder.harvest.sources import load_sources
from sparsify_crosscoder.runs.provenance import source_of_run
from sparsify_crosscoder.store.manifest import describe_source
from tests.support.adapters import save_adapter
from tests.support.models import save_tiny_model, save_twins
from tests.support.tokenizers import byte_level_tokenizer


@pytest.fixture(scope="module", params=[describe_source, source_of_run])
def described(tmp_path_factory, request) -> dict[str, dict[str, Any]]:
    """Records of a model, a fine-tune and two adapters of it, and of two other models."""
    folder = tmp_path_factory.mktemp("models")
    save_twins(folder)
    save_tiny_model(folder / "deep", "llama", byte_level_tokenizer(), width=24, layers=3)
    save_tiny_model(folder / "words", "llama", byte_level_tokenizer(vocab_size=300), width=24)
    save_adapter(folder / "quirk", folder / "base")
    save_adapter(folder / "same" / "base", folder / "base", seed=1)
    names = ("base", "tuned", "deep", "words", "quirk", "same/base")
    sources = load_sources(
        [str(folder / name) for name in names], placement=Placement("cpu"), dtype="float32"
    )
    return {name: request.param(source) for name, source in zip(names, sources, strict=True)}


def test_a_model_its_adapters_and_its_fine_tunes_are_one_family(described):
    base = described["base"]
    for name in ("base", "tuned", "quirk", "same/base"):
        assert same_family(base, described[name]) and same_family(described[name], base)
    assert same_family(described["quirk"], described["same/base"])
    assert "quirk is an adapter on" in kinship(base, described["quirk"]).why
    assert "are adapters on" in kinship(described["quirk"], described["same/base"]).why
    assert "same architecture" in kinship(base, described["tuned"]).why


def test_other_depths_and_vocabularies_and_old_records_are_none(described):
    base = described["base"]
    assert "differ in their architecture" in kinship(base, described["deep"]).why
    assert "differ in their vocabulary" in kinship(base, described["words"]).why
    old = {key: value for key, value in described["tuned"].items() if key != "vocabulary"}
    assert not same_family(base, old) and "not recorded" in kinship(base, old).why


def test_an_adapter_records_both_digests_and_has_a_name_of_its_own(described):
    base, adapter = described["base"], described["same/base"]
    assert adapter["checkpoint"].split("+")[0] == base["checkpoint"]
    assert adapter["checkpoint"] != described["quirk"]["checkpoint"]
    assert adapter["base"] == base["name"] and adapter["adapter"] == adapter["name"]
    assert "base" not in base and "adapter" not in base
    names = source_names([base, adapter, described["quirk"]])
    assert len(set(names)) == 3 and names[2] == "quirk"
