"""Every command over a table of bad inputs: one line that names the file, and nothing changes."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from delphi_adapters.__main__ import COMMANDS as JUDGING
from sparsify_crosscoder import SteeringVector
from sparsify_crosscoder.__main__ import COMMANDS
from sparsify_crosscoder.command_line import dispatch

CODER = "run/layers.1+h.2"
DAMAGE = {
    "empty": lambda whole: b"",
    "list": lambda whole: b"[]",
    "null": lambda whole: b"null",
    "number": lambda whole: b"3",
    "object": lambda whole: b"{}",
    "other object": lambda whole: b'{"a": 1}',
    "half": lambda whole: whole[: len(whole) // 2],
    "binary": lambda whole: bytes(range(256)) * 8,
    "deep": lambda whole: b"[" * 50_000,
}
STEER = "steer {root}/run --latents 1 --prompts a --max_new_tokens 2 --device cpu"
RESUME = "train {args} --resume --max_steps 40 --save_dir {root}"
# What each of our files is read by, and damage that leaves it whole.
READERS = {
    "run/config.json": ("filter {root}/run --device cpu", ()),
    "run/metrics.jsonl": (RESUME, ("empty", "half")),
    "run/checkpoints/step_000030/trainer.json": (RESUME, ()),
    "run/checkpoints/step_000030/state.pt": (RESUME, ()),
    "run/checkpoints/step_000030/optimizer_0.pt": (RESUME, ()),
    f"{CODER}/cfg.json": ("top {root}/run --device cpu", ()),
    f"{CODER}/sae.safetensors": (STEER, ()),
    "store/manifest.json": ("store {root}/store", ()),
    "vector.safetensors": ("transfer {root}/run {file} --out {root}/new --device cpu", ()),
    "stitching/cfg.json": (f"{STEER} --stitching {{root}}/stitching", ()),
    "persona.json": ("persona {root}/none {file} --out {root}/new", ()),
    "prompts.txt": (
        "steer --vector {root}/vector.safetensors --prompts_file {file}",
        ("list", "null", "number", "object", "other object", "half", "deep"),
    ),
    "toy/settings.json": ("toy --out {root}/toy --device cpu", ()),
    "toy/rows.jsonl": ("toy --out {root}/toy --device cpu --preset small", ("empty", "half")),
    "audit.yaml": ("audit --config {file}", ("object", "other object", "half", "empty")),
    "rubric.yaml": ("rubric {root}/run --latent 1 --rubric {file} --judge none", ()),
    "rated/rubric.yaml": ("reliability {root}/rated --labels {root}/labels.csv", ()),
    "out/audit/cache/stage.json": (
        "audit --run {root}/run --out {root}/out/audit --until cache",
        (),
    ),
}
QUICK = [
    (file, [*DAMAGE][(i + shift) % len(DAMAGE)])
    for i, file in enumerate(READERS)
    for shift in (0, 4)
    if "checkpoints" not in file and [*DAMAGE][(i + shift) % len(DAMAGE)] not in READERS[file][1]
]


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory) -> Path:
    """Folder with one of each of our files, all of them in order."""
    root = tmp_path_factory.mktemp("whole") / "files"
    root.mkdir()
    shutil.copytree(run, root / "run")
    shutil.copytree(run.parent / "store", root / "store")
    vector = SteeringVector(torch.ones(24), str(run.parent / "llama"), "layers.1")
    vector.save(root / "vector.safetensors")
    for name in ("stitching", "toy", "rated", "out/audit/cache"):
        (root / name).mkdir(parents=True)
    persona = {"trait": "rude", "elicit": ["Be rude."], "suppress": ["Be kind."]}
    texts = {
        "stitching/cfg.json": json.dumps({"kind": "stitching", "config": {}}),
        "persona.json": json.dumps({**persona, "questions": ["How are you?"]}),
        "prompts.txt": "One prompt\nAnother",
        "toy/settings.json": json.dumps({"k": 4, "num_steps": 100}),
        "toy/rows.jsonl": json.dumps({"variant": "dfc", "size": 1.0, "seed": 0}) + "\n",
        "audit.yaml": "model_a: x\nmodel_b: y\nuntil: [nowhere, else]\n",
        "rubric.yaml": "name: rudeness\ndimensions: {}\n",
        "rated/rubric.yaml": "name: rudeness\ndimensions: {}\n",
        "labels.csv": "item,dimension,score\n",
        "out/audit/cache/stage.json": json.dumps({"stage": "cache", "inputs": {}}),
    }
    for name, text in texts.items():
        (root / name).write_text(text, encoding="utf-8")
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def ended(argv: list[str], capsys) -> tuple[object, str]:
    """Exit code and what was said, of a command called in this process."""
    commands = JUDGING if argv[0] in JUDGING else COMMANDS
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        dispatch("prog", commands, argv)
    return stop.value.code, capsys.readouterr().err


def check(file: str, damage: str, whole: Path, run: Path, root: Path, capsys) -> None:
    shutil.copytree(whole, root)
    if file == "toy/rows.jsonl":
        (root / "toy" / "settings.json").unlink()  # else that is what is complained of
    (root / file).write_bytes(DAMAGE[damage]((root / file).read_bytes()))
    before = contents(root)
    places = run.parent
    args = f"{places}/llama {places}/texts.txt --partners {places}/gpt2 --arch dfc "
    args += "--hookpoints layers.1 h.2 --num_latents 64 --k 4 --pairs_per_step 128 --lr 1e-3 "
    args += f"--ctx_len 64 --run_name run --log_to_wandb False --device cpu --cache {places}/store"
    argv = READERS[file][0].replace("{args}", args)
    argv = argv.replace("{root}", str(root)).replace("{file}", str(root / file))
    code, said = ended(argv.split(), capsys)
    assert code in (1, 2), said
    lines = [line for line in said.splitlines() if ": error: " in line]
    assert len(lines) == 1 and "Traceback" not in said, said
    place = Path(file)
    by_folder = place.parent.name if file.startswith(("toy/", "stitching/")) else place.name
    assert place.name in lines[0] or f"{by_folder}'" in lines[0], said
    after = contents(root)
    assert {name: after.get(name) for name in before} == before


@pytest.mark.parametrize("file, damage", QUICK)
def test_a_damaged_file_is_named_and_nothing_changes(file, damage, whole, run, tmp_path, capsys):
    check(file, damage, whole, run, tmp_path / "files", capsys)


EVERY = [(f, d) for f, (_, fine) in READERS.items() for d in DAMAGE if d not in fine]


@pytest.mark.slow
@pytest.mark.parametrize("file, damage", sorted({*EVERY} - {*QUICK}))
def test_every_damage_of_every_file(file, damage, whole, run, tmp_path, capsys):
    check(file, damage, whole, run, tmp_path / "files", capsys)


MISSING = [
    "train {nowhere} {nowhere} --arch dfc --partners {nowhere}",
    "harvest {nowhere} {nowhere} --partners {nowhere} --cache {root}/store",
    "store {nowhere}",
    "top {nowhere}",
    "filter {nowhere}",
    "stability {nowhere} {nowhere}",
    "plant {nowhere}",
    "stitch {nowhere} --out {root}/new",
    "graft {nowhere}",
    "baselines {nowhere} {nowhere} --dataset {nowhere}",
    "patch {nowhere}",
    "export {nowhere} --source 0 --format saelens --out {root}/new",
    "equivalence {nowhere}",
    "steer {nowhere} --latents 1",
    "persona {nowhere} {nowhere} --out {root}/new",
    "transfer {nowhere} {nowhere} --out {root}/new",
    "toy --out {root}/a_file",
    "explain {nowhere} --judge {nowhere}",
    "audit --run {nowhere} --judge {nowhere} --out {root}/a_file",
    "rubric {nowhere} --latent 1 --rubric {nowhere} --judge {nowhere}",
    "reliability {nowhere} --labels {nowhere}",
]


@pytest.mark.parametrize("command", MISSING, ids=[one.split()[0] for one in MISSING])
def test_what_is_not_there_is_named_by_every_command(command, tmp_path, capsys):
    (tmp_path / "a_file").write_bytes(b"x")
    paths = {"{nowhere}": str(tmp_path / "nothing_here"), "{root}": str(tmp_path)}
    for name, path in paths.items():
        command = command.replace(name, path)
    device = [] if command.startswith(("store", "audit", "export")) else ["--device", "cpu"]
    code, said = ended([*command.split(), *device], capsys)
    lines = [line for line in said.splitlines() if ": error: " in line]
    assert code in (1, 2) and len(lines) == 1 and "Traceback" not in said, said
    assert "nothing_here" in lines[0] or "a_file" in lines[0], said
    assert (tmp_path / "a_file").read_bytes() == b"x"


NO_DEVICE = ("store", "audit", "reliability", "rubric", "export")
DEVICES = [c for c in MISSING if c.split()[0] not in NO_DEVICE]


@pytest.mark.parametrize("command", DEVICES, ids=[one.split()[0] for one in DEVICES])
def test_a_device_that_is_not_there_is_wrong_use(command, run, tmp_path, capsys):
    nowhere = str(run)
    if command.startswith(("persona", "transfer")):
        SteeringVector(torch.ones(24), str(run.parent / "llama"), "layers.1").save(tmp_path / "v")
        persona = {"trait": "a", "elicit": ["b"], "suppress": ["c"]}
        (tmp_path / "p").write_text(json.dumps(persona), encoding="utf-8")
        name = "v" if command.startswith("transfer") else "p"
        command = command.replace("{nowhere} {nowhere}", f"{run} {tmp_path / name}")
    command = command.replace("{nowhere}", nowhere).replace("{root}/a_file", "{root}/toy")
    argv = command.replace("{root}", str(tmp_path)).split()
    code, said = ended([*argv, "--device", "nonsense"], capsys)
    assert code == 2 and said.count("\n") == 1 and "nonsense" in said, said


WRONG_GENERATION = [
    {"eos_token_id": "a"},
    {"eos_token_id": [None]},
    {"max_length": "many"},
    {"temperature": []},
    {"top_k": 1.5},
    {"do_sample": "yes"},
    {"bad_words_ids": [3]},
]


@pytest.mark.parametrize("wrong", WRONG_GENERATION, ids=[next(iter(w)) for w in WRONG_GENERATION])
def test_a_generation_config_of_wrong_types_is_named(wrong, run, tmp_path, capsys):
    model = shutil.copytree(run.parent / "llama", tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps(wrong), encoding="utf-8")
    SteeringVector(torch.ones(24), str(model), "layers.1").save(tmp_path / "v")
    code, said = ended(["steer", "--vector", str(tmp_path / "v"), "--device", "cpu"], capsys)
    assert code == 1 and "generation_config.json' is damaged" in said and "Traceback" not in said


def test_ctrl_c_inside_steering_is_one_line(run, tmp_path, capsys, monkeypatch):
    from torch import nn

    def interrupted(self, x):
        raise KeyboardInterrupt

    vector = SteeringVector(torch.ones(24), str(run.parent / "llama"), "layers.1")
    vector.save(tmp_path / "v")
    monkeypatch.setattr(nn.Embedding, "forward", interrupted)
    for backend in ("auto", "hooks"):
        argv = ["steer", "--vector", str(tmp_path / "v"), "--device", "cpu", "--backend", backend]
        code, said = ended([*argv, "--strengths", "0", "1"], capsys)
        assert code == 130 and "interrupted; " in said and "Traceback" not in said, said
