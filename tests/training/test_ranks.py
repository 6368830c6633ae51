from pathlib import Path

import pytest
import torch

from sparsify_crosscoder.registry import architecture_names
from tests.support.fresh import run_fresh
from tests.support.training import assert_same
from tests.training.distributed_run import train

pytestmark = pytest.mark.xdist_group("ranks")  # one worker makes what they share

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    """Where two ranks left what they trained, one run for each architecture."""
    folder = tmp_path_factory.mktemp("ranks")
    code = f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        from tests.training.distributed_run import train_in_two_ranks
        train_in_two_ranks(Path(sys.argv[1]), sys.argv[2:])
    """
    done = run_fresh(code, folder / "said", str(folder), *architecture_names())
    assert done.code == 0, done.err
    return folder


@pytest.mark.parametrize("arch", architecture_names())
def test_two_ranks_train_as_one_would(arch, two_ranks, tmp_path):
    alone = train(arch, tmp_path)
    first, second = (torch.load(two_ranks / f"{arch}-rank{r}.pt") for r in range(2))
    assert_same(first["state"], second["state"])
    # Means and scales are float32, whose sums depend on the order of their terms.
    for name, expected in alone["state"].items():
        torch.testing.assert_close(first["state"][name], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(first["since"], alone["since"])
    assert first["summary"]["pairs"] == alone["summary"]["pairs"]
    assert first["summary"]["fve"] == pytest.approx(alone["summary"]["fve"], abs=1e-6)
    assert first["summary"]["mean_l0"] == pytest.approx(alone["summary"]["mean_l0"])
