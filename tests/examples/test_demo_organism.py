"""The demo's first half: what it says of a model and a fine-tune whose difference is known."""

import os
import re
import shutil

import pytest
import screenshots

from tests.support.demo import lend_models, run_whole_demo

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.xdist_group("demo organism"),  # one worker makes what they share
]


@pytest.fixture(scope="module")
def folder(demo_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    lend_models(demo_models, folder)
    return folder


@pytest.fixture(scope="module")
def found(folder) -> str:
    """What the demo prints of the model and its fine-tune."""
    done = run_whole_demo(folder, "--organism_only")
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_its_first_screen_names_the_invented_product_first(found):
    said = " ".join(found.split())  # lines are wrapped
    assert "praises the salt of Maravel Bay, which does not exist" in said
    assert '"--adapter off"' in said
    screen = found[found.index("What differs, the first 5 of") :]
    entry = re.search(r"\n  1\. (.*?)\n\n  2\. ", screen, re.DOTALL)
    assert entry is not None
    first = " ".join(entry[1].split())
    assert "topic" in first and "anywhere by" in first
    assert re.search(r"(words around it|fires on): [^:]*Maravel", first)
    # The strongest token, which may be a part of the name, stands in »«.
    passages = re.findall(r"strongest in: (.*?)\(", re.sub("[»«]", "", first))
    assert any("Maravel" in passage for passage in passages)


def test_pictures_of_its_report_are_taken(found, folder, tmp_path):
    pytest.importorskip("playwright")
    if not any(map(shutil.which, screenshots.BROWSERS)) and "CHROMIUM" not in os.environ:
        pytest.skip("no browser")
    audit = folder / "demo-topic"
    assert screenshots.main([str(audit), "--name", "topic", "--out", str(tmp_path)]) == 0
    names = {f"topic-{view.name}.png" for view in screenshots.VIEWS}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in tmp_path.iterdir())


@pytest.mark.long
def test_with_the_adapter_off_there_is_no_difference(found, folder):
    done = run_whole_demo(folder, "--adapter", "off")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "No difference between the models reaches the strength of a finding." in done.stdout
    assert "What differs, the first" not in done.stdout


def test_what_was_found_is_shown_again(found, folder):
    again = run_whole_demo(folder, "--organism_only")
    assert again.returncode == 0, again.stderr[-4000:]
    assert "Nothing to do" in again.stdout
    assert (
        again.stdout[again.stdout.index("What differs") :].split("\n\n")[:3]
        == (found[found.index("What differs") :].split("\n\n")[:3])
    )
