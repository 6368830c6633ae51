"""What a command finds around it, and what of it reaches the user."""

import io
import logging
import os
import subprocess
import sys
import warnings

import datasets
import pytest
import transformers

from sparsify_crosscoder.surroundings import (
    SilentImport,
    command_surroundings,
    wandb_is_set_up,
)

LIBRARIES = ("transformers", "datasets", "huggingface_hub")


def levels() -> list[int]:
    return [logging.getLogger(name).level for name in (*LIBRARIES, "sparsify_crosscoder")]


def test_what_libraries_say_is_not_shown_and_what_we_say_is_a_line(capsys):
    logger = logging.getLogger("sparsify_crosscoder.text.windows")
    with command_surroundings():
        transformers.logging.get_logger("transformers.x").warning("Token indices too long")
        datasets.logging.get_logger("datasets.x").warning("no card")
        logging.getLogger("numba.core").warning("nothing to compile")
        warnings.warn("torch has something to say", UserWarning, stacklevel=2)
        warnings.warn("resume_download is deprecated", FutureWarning, stacklevel=2)
        list(datasets.utils.tqdm(range(3), desc="Generating train split"))
        list(transformers.utils.logging.tqdm(range(3), desc="Loading weights"))
        for _ in range(2):
            logger.warning("Two\nof %d texts are empty.", 7)
        logger.error("It is over.")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "warning: Two of 7 texts are empty.\nerror: It is over.\n"


def test_our_own_python_warnings_are_lines_as_well(capsys):
    with command_surroundings():
        code = compile("import warnings; warnings.warn('numba is not used')", __file__, "exec")
        exec(code)
        from sparsify_crosscoder.crosscoders.kernels import numba_kernels

        place = numba_kernels.__file__
        exec(compile("import warnings; warnings.warn('numba is not used')", place, "exec"), {})
        kind = "DeprecationWarning"
        exec(compile(f"import warnings; warnings.warn('old', {kind})", place, "exec"), {})
    assert capsys.readouterr().err == "warning: numba is not used\n"


def test_everything_is_put_back():
    before = levels(), os.environ.copy(), warnings.showwarning, list(sys.meta_path)
    bar = datasets.utils.tqdm.__init__
    for _ in range(2):
        with pytest.raises(ValueError, match="wrong"), command_surroundings():
            assert levels()[0] == logging.ERROR
            assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"
            with command_surroundings():  # a command inside a command
                pass
            assert levels()[0] == logging.ERROR
            raise ValueError("wrong")
        assert (levels(), os.environ, warnings.showwarning, list(sys.meta_path)) == before
        assert datasets.utils.tqdm.__init__ is bar


def test_who_asks_for_more_gets_it(monkeypatch, capsys):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "warning")
    monkeypatch.setattr(sys, "warnoptions", ["always"])
    with command_surroundings():
        assert logging.getLogger("transformers").level != logging.ERROR
        shown = warnings.showwarning
    assert shown is warnings.showwarning


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_no_character_is_too_much_for_a_stream(encoding, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    with command_surroundings():
        print("«river» 🇰🇷 \udce9 €")
    sys.stdout.flush()
    shown = raw.getvalue().decode(encoding)
    assert "river" in shown and "\\udce9" in shown
    assert ("🇰🇷" in shown) == (encoding == "utf-8")
    assert ("«" in shown) == (encoding != "ascii")


def test_closed_streams_are_nothing_to_write_to(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with command_surroundings():
        print("something")
        logging.getLogger("sparsify_crosscoder").warning("something")


def test_a_cache_that_cannot_be_written_to_is_replaced(monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/dev/null/cache")
    with command_surroundings():
        used = datasets.config.HF_DATASETS_CACHE
        made = datasets.Dataset.from_dict({"text": ["a", "b"]}).map(lambda row: {"n": 1})
        assert made["n"] == [1, 1]
        assert used.is_dir() and os.environ["HF_DATASETS_CACHE"] == str(used)
    assert not used.exists() and datasets.config.HF_DATASETS_CACHE == "/dev/null/cache"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: The cache of datasets, '/dev/null/cache'")
    assert str(used) in line and "HF_HOME" in line


def test_a_module_is_imported_without_a_word_and_as_always(tmp_path, monkeypatch, capsys):
    for name in ("talks", "breaks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part.py").write_text("VALUE = 7\nprint('part')\n", encoding="utf-8")
    (tmp_path / "talks" / "__init__.py").write_text(
        "print('hello')\nfrom .part import VALUE\n", encoding="utf-8"
    )
    (tmp_path / "breaks" / "__init__.py").write_text("print('hello')\n1 / 0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    after = []
    finder = SilentImport("talks", lambda: after.append("then"))
    monkeypatch.setattr(sys, "meta_path", [finder, SilentImport("breaks"), *sys.meta_path])
    import talks  # pyright: ignore[reportMissingImports]

    assert talks.VALUE == 7 and after == ["then"] and finder not in sys.meta_path
    assert (
        type(talks.__loader__).__name__
        == "SourceFileLoader"
        == type(talks.__spec__.loader).__name__
    )
    with pytest.raises(ZeroDivisionError):
        import breaks  # noqa: F401  # pyright: ignore[reportMissingImports]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("variables", "netrc", "found"),
    [
        ({}, None, False),
        ({"WANDB_API_KEY": "k"}, None, True),
        ({"WANDB_MODE": "offline"}, None, True),
        ({}, "machine api.wandb.ai login user password k", True),
        ({}, "machine github.com login user password k", False),
    ],
)
def test_weights_and_biases_is_used_where_it_is_set_up(
    variables, netrc, found, tmp_path, monkeypatch
):
    for name in ("API_KEY", "MODE", "BASE_URL"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if netrc is not None:
        (tmp_path / "netrc").write_text(netrc, encoding="utf-8")
    assert wandb_is_set_up() == found


@pytest.mark.skipif(os.name == "nt", reason="names on Windows are text")
def test_a_name_that_only_utf8_spells_reaches_the_command(tmp_path):
    place = tmp_path / "données 😀"
    place.mkdir()
    code = (
        "import sys; from sparsify_crosscoder.surroundings import command_surroundings\n"
        "with command_surroundings(): print(ascii(sys.argv[1]), sys.flags.utf8_mode)"
    )
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        [*command, place], env=env, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert done.stdout.strip() == f"{str(place)!a} 1"
    done = subprocess.run(
        [*command, "plain"], env=env, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert done.stdout.strip() == "'plain' 0"
