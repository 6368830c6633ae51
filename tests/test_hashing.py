"""Digests name stored answers, finished stages and files: a change would lose what is there."""

from sparsify_crosscoder.hashing import hash_bytes, hash_file, hash_json, hash_text

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
NESTED = {"b": [1, 2.5, None], "a": "ü"}


def test_digests_are_sha256_in_hexadecimal(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert hash_bytes(b"abc") == hash_text("abc") == hash_file(tmp_path / "abc") == ABC


def test_json_is_hashed_as_json_dumps_writes_it():
    assert hash_json(NESTED) == hash_text('{"b": [1, 2.5, null], "a": "\\u00fc"}')
    assert hash_json(NESTED, sort_keys=True) == hash_text('{"a": "\\u00fc", "b": [1, 2.5, null]}')
