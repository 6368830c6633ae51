"""What installed packages offer is looked for once, and again after an installation."""

from sparsify_crosscoder.offered import offered
from tests.support.plugins import write_plugin


def test_nothing_is_read_twice():
    assert offered("sparsify.trainers") is offered("sparsify.trainers")


def test_what_is_installed_later_is_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    assert offered("some.group") == ()
    write_plugin(tmp_path, "late", {"late.py": ""}, {"some.group": {"later": "late:Later"}})
    assert [entry.value for entry in offered("some.group")] == ["late:Later"]
