"""An architecture of somebody else's: one file and one entry point."""

import pytest
import torch

from sparsify_crosscoder import Crosscoder
from sparsify_crosscoder.registry import ENTRY_POINT_GROUP, architecture_names, get_architecture
from tests.support.training import assert_same, make_trainer, weights

SOURCE = '''
from dataclasses import dataclass

import torch

from sparsify_crosscoder import Architecture, Crosscoder, CrosscoderConfig, Partition


@dataclass
class LastConfig(CrosscoderConfig):
    """Latents that the last model alone has, and shared ones."""

    last_fraction: float = 0.25
    """Fraction of the latents that only the last model reads and writes."""


class LastCrosscoder(Crosscoder):
    """Crosscoder whose last block is the last model's; it begins where the first pairs lie."""

    arch = "last"
    config_class = LastConfig

    @classmethod
    def make_partition(cls, num_latents, d_sources, cfg):
        own = round(cfg.last_fraction * num_latents)
        sources = tuple(range(len(d_sources)))
        blocks = [("shared", num_latents - own, sources), ("last", own, sources[-1:])]
        return Partition.build(len(d_sources), blocks)

    @torch.no_grad()
    def prepare(self, pairs, world):
        x = torch.cat(list(pairs(len(self.partition.blocks[-1]))))[: len(self.encoder.weights[-1])]
        self.encoder.weights[-1][: len(x)] = x[:, self.columns[-1]]


LAST = Architecture("last", LastConfig, LastCrosscoder, description="the last model's own")
'''


@pytest.fixture
def last(plugin) -> str:
    plugin(
        "last-model", {"last_model.py": SOURCE}, {ENTRY_POINT_GROUP: {"last": "last_model:LAST"}}
    )
    return "last"


class Killed(Exception):
    pass


def test_it_trains_saves_loads_resumes_and_exports(last, tmp_path):
    assert last in architecture_names()
    coder_class = get_architecture(last).coder_class
    options = {"arch": last, "sae": {"last_fraction": 0.5}, "save_every": 5, "max_steps": 12}
    whole = make_trainer(tmp_path / "whole", **options)
    summary = whole.fit()
    assert summary["arch"] == "last" and summary["partition"] == {"shared": 20, "last": 20}

    killed = make_trainer(tmp_path / "killed", **options)

    def kill():
        if killed.global_step == 7:
            raise Killed

    with pytest.raises(Killed):
        killed.fit(kill)
    resumed = make_trainer(tmp_path / "killed", **options)
    resumed.load_state(str(tmp_path / "killed" / "run"))
    assert resumed.global_step == 5
    resumed.fit()
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))

    loaded = Crosscoder.load_one(tmp_path / "whole" / "run")
    assert type(loaded) is coder_class and loaded.cfg.last_fraction == 0.5
    assert not loaded.decoder(0)[20:].any() and loaded.decoder(1)[20:].any()
    [trained] = whole.saes.values()
    x = [torch.randn(9, width) for width in loaded.d_sources]
    assert torch.equal(loaded(x).sae_out, trained.eval()(x).sae_out)
    half = loaded.export_sae(1, tmp_path / "half")
    assert torch.equal(half.W_dec, loaded.decoder(1) / loaded.factors[1])


def test_what_it_prepares_is_what_training_begins_with(last, tmp_path):
    trainer = make_trainer(tmp_path, last, max_steps=1, lr=0.0, sae={"last_fraction": 0.1})
    trainer.fit()
    [crosscoder] = trainer.saes.values()
    first = next(iter(trainer.first_pairs(crosscoder, 4)))
    assert torch.equal(crosscoder.encoder.weights[-1], first[:4, crosscoder.columns[-1]])
