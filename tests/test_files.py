import json
import os

import pytest

from sparsify_crosscoder.files import atomic_path, atomic_write_json, no_address, remove_leftovers


def test_a_file_appears_whole_at_the_end(tmp_path):
    target = tmp_path / "new" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("all of it", encoding="utf-8")
        assert not target.exists()
        assert (temporary.parent, temporary.suffix) == (target.parent, target.suffix)
    assert target.read_text(encoding="utf-8") == "all of it"
    assert os.listdir(target.parent) == ["file.txt"]


def test_a_file_is_replaced(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old", encoding="utf-8")
    with atomic_path(target) as temporary:
        temporary.write_text("new", encoding="utf-8")
        assert target.read_text(encoding="utf-8") == "old"
    assert target.read_text(encoding="utf-8") == "new"


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt
    assert target.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_folder_appears_whole_at_the_end(tmp_path):
    target = tmp_path / "folder"
    with atomic_path(target) as temporary:
        (temporary / "inner").mkdir(parents=True)
        (temporary / "inner" / "file.txt").write_text("inside", encoding="utf-8")
        assert not target.exists()
    assert (target / "inner" / "file.txt").read_text(encoding="utf-8") == "inside"
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_with_contents_is_not_replaced(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "mine").write_text("old", encoding="utf-8")
    with pytest.raises(OSError), atomic_path(target) as temporary:
        temporary.mkdir()
    assert (target / "mine").read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["folder"]


def test_publishing_the_same_inode_again_leaves_no_temporary(tmp_path):
    original, target = tmp_path / "original", tmp_path / "target"
    original.write_text("weights", encoding="utf-8")
    for _ in range(2):
        with atomic_path(target) as temporary:
            os.link(original, temporary)
    assert target.read_text(encoding="utf-8") == "weights"
    assert sorted(os.listdir(tmp_path)) == ["original", "target"]


def test_json_is_readable_by_people_and_keeps_every_letter(tmp_path):
    obj = {"name": "모델", "values": [1, 2.5, None]}
    atomic_write_json(tmp_path / "a.json", obj)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == obj
    assert "모델" in text
    assert text.endswith("}\n")


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    atomic_write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        atomic_write_json(tmp_path / "a.json", {"new": object()})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".tmp-1-file").write_text("half", encoding="utf-8")
    (tmp_path / ".tmp-2-folder").mkdir()
    (tmp_path / ".tmp-2-folder" / "x").write_text("half", encoding="utf-8")
    (tmp_path / "kept").write_text("whole", encoding="utf-8")
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["kept"]


@pytest.mark.parametrize("name", ["double::colon", "file:::x", "a::b::c"])
def test_a_dataset_is_kept_where_its_name_could_be_an_address(name, tmp_path):
    from datasets import Dataset, load_from_disk

    folder = tmp_path / name
    folder.mkdir()
    Dataset.from_dict({"n": [1, 2]}).save_to_disk(no_address(folder) / "windows")
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert load_from_disk(str(no_address(folder / "windows")))["n"][:] == [1, 2]
    assert no_address(tmp_path) == tmp_path
