import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from sparsify_crosscoder import registry
from sparsify_crosscoder.registry import (
    Architecture,
    ArchitectureError,
    architecture_names,
    get_architecture,
    register_architecture,
)
from tests.support.fresh import run_fresh
from tests.support.models import save_tiny_model
from tests.support.tokenizers import SENTENCES, byte_level_tokenizer

OURS = ["crosscoder", "dfc", "dsf", "rdfc"]
PLUGIN = Path(__file__).parent / "plugin_example"


class Coder:
    pass


class OtherCoder:
    pass


def make_architecture(name: str, coder: type = Coder) -> Architecture:
    return Architecture(name, dict, coder, object, print)


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})


@pytest.fixture
def install(plugin):
    """Installs a distribution of one module that offers an architecture."""

    def install(distribution: str, name: str, source: str = "ARCHITECTURE = None") -> None:
        module = distribution.replace("-", "_")
        offers = {registry.ENTRY_POINT_GROUP: {name: f"{module}:ARCHITECTURE"}}
        plugin(distribution, {f"{module}.py": source}, offers, version="2.0")

    return install


OFFER = """
from sparsify_crosscoder.registry import Architecture
ARCHITECTURE = Architecture({name!r}, dict, dict, object, print)
"""


def test_our_three_architectures_are_listed_without_being_imported():
    code = (
        "import sys; from sparsify_crosscoder.registry import architecture_names;"
        "print(architecture_names(), 'torch' in sys.modules, 'sparsify' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert out.stdout.strip() == f"{OURS} False False"


@pytest.mark.parametrize("name", OURS)
def test_our_architectures_are_found_by_name(name):
    architecture = get_architecture(name)
    assert architecture.name == name
    assert architecture.coder_class.arch == name
    assert architecture.coder_class.config_class is architecture.config_class
    assert architecture.description


def test_a_registered_architecture_is_listed_and_found():
    mine = make_architecture("mine")
    register_architecture(mine)
    assert get_architecture("mine") is mine
    assert architecture_names() == sorted([*OURS, "mine"])


def test_a_second_registration_is_refused_naming_both():
    register_architecture(make_architecture("mine"))
    with pytest.raises(ArchitectureError) as error:
        register_architecture(make_architecture("mine", OtherCoder))
    assert f"{__name__}.Coder" in str(error.value)
    assert f"{__name__}.OtherCoder" in str(error.value)
    assert get_architecture("mine").coder_class is Coder


def test_registering_the_name_of_an_installed_architecture_is_refused_naming_both():
    with pytest.raises(ArchitectureError) as error:
        register_architecture(make_architecture("dfc"))
    assert "'dfc'" in str(error.value)
    assert f"{__name__}.Coder" in str(error.value)
    assert "sparsify-crosscoder 0.1.0" in str(error.value)


def test_only_architectures_can_be_registered():
    with pytest.raises(ArchitectureError, match="takes an Architecture"):
        register_architecture(Coder)  # pyright: ignore[reportArgumentType]
    assert architecture_names() == OURS


def test_an_unknown_name_is_refused_with_close_matches_and_all_known_names():
    with pytest.raises(ArchitectureError) as error:
        get_architecture("crosscodr")
    assert str(error.value) == (
        "unknown architecture 'crosscodr'. Did you mean 'crosscoder'? "
        "Known architectures: crosscoder, dfc, dsf, rdfc"
    )


def test_an_unknown_name_without_close_matches_lists_the_known_ones():
    with pytest.raises(ArchitectureError) as error:
        get_architecture("zzz")
    assert str(error.value) == (
        "unknown architecture 'zzz'. Known architectures: crosscoder, dfc, dsf, rdfc"
    )


def test_an_installed_architecture_is_found_by_its_entry_point(install):
    install("installed-plugin", "fifth", OFFER.format(name="fifth"))
    assert "fifth" in architecture_names()
    assert "installed_plugin" not in sys.modules
    assert get_architecture("fifth").coder_class is dict


def test_a_name_that_two_distributions_offer_is_refused_naming_both(install):
    install("plugin-one", "fifth", OFFER.format(name="fifth"))
    install("plugin-two", "fifth", OFFER.format(name="fifth"))
    assert architecture_names().count("fifth") == 1
    with pytest.raises(ArchitectureError, match=r"'fifth' is offered more than once") as error:
        get_architecture("fifth")
    assert "plugin-one 2.0" in str(error.value)
    assert "plugin-two 2.0" in str(error.value)
    assert not {"plugin_one", "plugin_two"} & sys.modules.keys()


def test_a_distribution_that_takes_one_of_our_names_is_refused_naming_both(install):
    install("plugin-greedy", "dfc", OFFER.format(name="dfc"))
    with pytest.raises(ArchitectureError) as error:
        get_architecture("dfc")
    assert "plugin-greedy 2.0" in str(error.value)
    assert "sparsify-crosscoder 0.1.0" in str(error.value)


def test_a_name_registered_before_its_distribution_appears_is_refused_naming_both(install):
    register_architecture(make_architecture("fifth"))
    install("plugin-late", "fifth", OFFER.format(name="fifth"))
    with pytest.raises(ArchitectureError) as error:
        get_architecture("fifth")
    assert f"{__name__}.Coder" in str(error.value)
    assert "plugin-late 2.0" in str(error.value)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "cannot be imported: ModuleNotFoundError: No module named"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("", "cannot be imported: AttributeError"),
        ("ARCHITECTURE = dict()", "is not a sparsify_crosscoder.Architecture but a dict"),
        (OFFER.format(name="sixth"), "calls itself 'sixth'"),
    ],
)
def test_a_broken_entry_point_is_refused_naming_its_distribution(install, source, reason):
    install("plugin-broken", "fifth", source)
    with pytest.raises(ArchitectureError) as error:
        get_architecture("fifth")
    assert "'fifth'" in str(error.value)
    assert "plugin-broken 2.0 (plugin_broken:ARCHITECTURE)" in str(error.value)
    assert reason in str(error.value)
    assert architecture_names() == sorted([*OURS, "fifth"])


@pytest.fixture(scope="module")
def plugin_site(tmp_path_factory) -> Path:
    """Where the example distribution is installed, as pip does it but without a network."""
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command = [*pip, "--no-build-isolation", "--target", str(site), str(PLUGIN)]
    subprocess.run(command, check=True, capture_output=True)
    return site


def test_a_package_of_others_adds_an_architecture_that_encodes_saves_and_loads(
    plugin_site, tmp_path
):
    code = f"""
import sys
sys.path.insert(0, {str(plugin_site)!r})
import torch
from sparsify_crosscoder import Crosscoder
from sparsify_crosscoder.registry import architecture_names, get_architecture
print(architecture_names())
fourth = get_architecture("one_sided")
coder = fourth.coder_class([6, 4], fourth.config_class(num_latents=32, k=4, first_fraction=0.5))
print(coder.partition.exclusive(0), coder.decoder(1)[:16].abs().sum().item())
coder.save_to_disk(sys.argv[1])
again = Crosscoder.load_from_disk(sys.argv[1])
x = torch.randn(3, 10)
print(type(again).__name__, torch.equal(again(x).sae_out, coder.eval()(x).sae_out))
"""
    out = run_fresh(code, tmp_path / "said", str(tmp_path / "checkpoint"))
    assert out.code == 0, out.err
    assert out.out.splitlines()[-3:] == [
        str(sorted([*OURS, "one_sided"])),
        "range(0, 16) 0.0",
        "OneSidedCrosscoder True",
    ]


@pytest.mark.slow
def test_the_sparsify_command_trains_the_architecture_of_others(plugin_site, tmp_path):
    first = save_tiny_model(tmp_path / "a", "llama", byte_level_tokenizer(300), width=24)
    second = save_tiny_model(tmp_path / "b", "gpt2", byte_level_tokenizer(400), width=16)
    texts = [" ".join(SENTENCES[i:] + SENTENCES[:i]) for i in range(len(SENTENCES))]
    Dataset.from_dict({"text": texts}).save_to_disk(str(tmp_path / "text"))
    options = {
        "--arch": "one_sided",
        "--partners": second,
        "--first_fraction": "0.5",
        "--num_latents": "64",
        "--k": "4",
        "--ctx_len": "128",
        "--pairs_per_step": "64",
        "--max_steps": "4",
        "--normalization_pairs": "128",
        "--buffer_pairs": "256",
        "--held_out_pairs": "64",
        "--save_dir": tmp_path / "runs",
        "--run_name": "one",
        "--log_to_wandb": "False",
        "--device": "cpu",
    }
    sparsify = Path(sys.executable).parent / "sparsify"
    done = subprocess.run(
        [
            sparsify,
            first,
            tmp_path / "text",
            *(str(part) for pair in options.items() for part in pair),
        ],
        env={**os.environ, "PYTHONPATH": str(plugin_site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs" / "one" / "summary.json").read_text(encoding="utf-8"))
    assert summary["arch"] == "one_sided"
    assert summary["partition"] == {"exclusive_0": 32, "shared": 32}
