"""The notebook, from models to a steered finding, as Jupyter runs it."""

import os
import re
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_finding.py"


@pytest.fixture(scope="module")
def notebook():
    return pytest.importorskip("jupytext").read(NOTEBOOK)


def shown(cell) -> str:
    """What a cell printed, in order, without the colours of a console."""
    text = "".join(output.get("text", "") for output in cell.outputs)
    return re.sub("\x1b\\[[0-9;]*m", "", text)


def test_it_begins_with_the_install(notebook):
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.source.startswith("%pip install")
    assert first.metadata["tags"] == ["skip-execution"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_fine_tunes_product_is_found_and_steered_with(
    notebook, demo_models, tmp_path, monkeypatch
):
    client = pytest.importorskip("nbclient")
    commands = Path(sys.executable).parent  # as in an activated environment
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MODELS", str(demo_models))
    monkeypatch.setenv("WORK", str(tmp_path))
    resources = {"metadata": {"path": str(NOTEBOOK.parents[1])}}
    client.NotebookClient(notebook, timeout=600, resources=resources).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    said = {cell.source.splitlines()[0]: shown(cell) for cell in cells}
    listed = said["from sparsify_crosscoder import Run, list_differences, top"]
    assert re.search(r"^1\. exclusive, the fine-tune's, latent \d+", listed, re.MULTILINE)
    assert "«" in said["first = found.findings[0]"]
    assert re.search("Maravel|salt", re.sub("[«»]", "", said["first = found.findings[0]"]))
    answers = said["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    assert re.findall(r"^(\d): ", answers, re.MULTILINE) == ["0", "1", "2", "4"]
    assert said["import nnsight"].strip()
    bars = [
        output
        for cell in cells
        for output in cell.outputs
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    ]
    assert bars and not any("TqdmWarning" in text for text in said.values())
