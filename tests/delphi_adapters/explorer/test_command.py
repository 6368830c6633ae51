"""What `serve` says before there is a page."""

import sys

import pytest

from delphi_adapters.commands.serve import main


def end_of(argv, capsys):
    """The exit code and the only line."""
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in argv])
    (line,) = capsys.readouterr().err.splitlines()
    return ended.value.code, line


def test_a_folder_without_a_run_gets_one_line(tmp_path, capsys):
    code, line = end_of([tmp_path / "none"], capsys)
    assert code == 1
    assert "holds no run and no audit: name a folder" in line


@pytest.mark.parametrize("option", ["--port 0", "--port 70000", "--pairs 0"])
def test_numbers_that_make_no_sense_get_one_line(tmp_path, capsys, option):
    code, line = end_of([tmp_path, *option.split()], capsys)
    assert code == 2
    assert option.split()[0] in line


def test_a_missing_gradio_is_named_with_what_installs_it(tmp_path, capsys, monkeypatch):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "delphi_adapters.explorer.page", raising=False)
    code, line = end_of([tmp_path], capsys)
    assert code == 1
    assert line.endswith("gradio is not installed: pip install 'sparsify-crosscoder[serve]'")
