import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from sparsify_crosscoder import Crosscoder
from sparsify_crosscoder.config import CrosscoderTrainConfig
from sparsify_crosscoder.registry import architecture_names
from tests.support.streams import planted_data
from tests.support.training import assert_same, make_trainer, metrics, weights

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("arch", architecture_names())
def test_training_explains_planted_concepts(arch, tmp_path):
    summary = make_trainer(tmp_path, arch, max_steps=150, epochs=20).fit()
    assert summary["arch"] == arch
    assert summary["fve"] > 0.8
    assert min(summary["fve_per_source"]) > 0.75
    run = tmp_path / "run"
    assert json.loads((run / "summary.json").read_text(encoding="utf-8"))["fve"] == summary["fve"]
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(5, 151, 5))
    assert lines[-1]["fve"] > lines[0]["fve"]
    loaded = Crosscoder.load_many(str(run), local=True)
    assert list(loaded) == ["layers.1+layers.2"]
    assert loaded["layers.1+layers.2"].arch == arch


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("arch", architecture_names())
def test_training_on_a_gpu_explains_planted_concepts_too(arch, tmp_path):
    trainer = make_trainer(tmp_path, arch, max_steps=150, epochs=20, device="cuda")
    assert trainer.fit()["fve"] > 0.8
    [sae] = trainer.saes.values()
    assert sae.b_dec.is_cuda and sae.W_dec.dtype == torch.float32
    if arch == "dfc":
        assert not sae.decoder(1)[:6].any() and not sae.decoder(0)[6:12].any()


def test_the_summary_has_the_keys_that_others_rely_on(tmp_path):
    summary = make_trainer(tmp_path).fit()
    written = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert {
        "arch", "fve", "fve_per_source", "fve_without_top5_per_source", "dead_fraction",
        "dead_fraction_exclusive", "mean_l0", "pairs", "wall_seconds", "num_latents", "partition",
        "relative_decoder_norm", "versions", "sources",
    } <= written.keys()  # fmt: skip
    assert summary["partition"] == {"exclusive_0": 6, "exclusive_1": 6, "shared": 28}
    assert sum(summary["relative_decoder_norm"]["counts"]) == 40
    assert len(summary["dead_fraction_exclusive"]) == 2
    assert summary["pairs"] + summary["dropped_in_training"]["outlier"] == 20 * 64
    config = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert config["pairs_per_step"] == 64 and config["environment"]["versions"]["torch"]


class Killed(Exception):
    pass


OPTIMIZERS = ("adam", "signum", "muon")
RESUMED = [
    *((arch, "adam", 7) for arch in architecture_names()),
    *(("dfc", optimizer, stop) for optimizer in OPTIMIZERS for stop in (7, 13)),
]
RARELY_RESUMED = [
    (arch, optimizer, stop)
    for arch in architecture_names()
    for optimizer in OPTIMIZERS
    for stop in (7, 13)
    if (arch, optimizer, stop) not in RESUMED
]


@pytest.mark.parametrize(
    ("arch", "optimizer", "stop"),
    [
        *dict.fromkeys(RESUMED),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in RARELY_RESUMED),
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(arch, optimizer, stop, tmp_path):
    options = {"arch": arch, "optimizer": optimizer, "save_every": 5, "max_steps": 20}
    whole = make_trainer(tmp_path / "whole", **options).fit()
    killed = make_trainer(tmp_path / "killed", **options)

    def kill():
        if killed.global_step == stop:
            raise Killed

    with pytest.raises(Killed):
        killed.fit(kill)
    resumed = make_trainer(tmp_path / "killed", **options)
    resumed.load_state(str(tmp_path / "killed" / "run"))
    assert resumed.global_step == stop // 5 * 5
    summary = resumed.fit()
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    for key in ("fve", "dead_fraction", "pairs", "mean_l0", "dropped_in_training"):
        assert summary[key] == whole[key]
    steps = [[line["step"] for line in metrics(tmp_path / name)] for name in ("whole", "killed")]
    assert steps[0] == steps[1] == [5, 10, 15, 20]


def test_micro_batches_give_the_same_steps(tmp_path):
    data = planted_data(dtype=torch.float64)
    results = []
    for micro in (1, 3):
        trainer = make_trainer(
            tmp_path / str(micro), data=data, micro_acc_steps=micro, auxk_alpha=0.0, max_steps=5
        )
        for sae in trainer.saes.values():
            sae.double()
        trainer.optimizers, trainer.lr_schedulers = trainer._make_optimizers()
        trainer.fit()
        results.append(next(iter(trainer.saes.values())).W_dec.detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-9)


def test_gradient_accumulation_takes_several_batches_a_step(tmp_path):
    summary = make_trainer(tmp_path, grad_acc_steps=3, max_steps=10, outlier_multiple=0.0).fit()
    assert summary["steps"] == 10
    assert summary["pairs"] == 10 * 3 * 64


def test_k_falls_from_its_initial_value_to_the_final_one(tmp_path):
    trainer = make_trainer(tmp_path, k_decay_steps=10, initial_k=13, log_every=1, max_steps=15)
    trainer.fit()
    lines = metrics(tmp_path)
    assert [line["k"] for line in lines[:2]] == [12, 11]
    assert all(line["k"] == 3 for line in lines[9:])
    assert lines[0]["l0"] > lines[-1]["l0"]
    assert lines[-1]["l0"] == pytest.approx(3, rel=0.02)
    cfg = json.loads(
        (tmp_path / "run" / "layers.1+layers.2" / "cfg.json").read_text(encoding="utf-8")
    )
    assert cfg["k"] == 3


def test_the_schedule_of_a_long_run_is_the_papers():
    cfg = CrosscoderTrainConfig()
    cfg.resolve_schedule(100_000)
    assert (cfg.k_decay_steps, cfg.initial_k, cfg.lr_warmup_steps) == (5000, 1000, 1000)
    assert (cfg.threshold_start_step, cfg.threshold_decay) == (1000, 0.999)
    assert (cfg.sae.k, cfg.auxk_alpha, cfg.pairs_per_step) == (200, 0.03, 2048)
    assert cfg.dead_feature_threshold == 10_000_000


def test_several_seeds_train_side_by_side(tmp_path):
    summary = make_trainer(tmp_path, init_seeds=[0, 1]).fit()
    assert list(summary["runs"]) == ["layers.1+layers.2/seed0", "layers.1+layers.2/seed1"]
    loaded = Crosscoder.load_many(str(tmp_path / "run"), local=True)
    assert not torch.equal(*(c.W_dec for c in loaded.values()))


def test_the_best_crosscoder_is_kept_beside_the_newest(tmp_path):
    trainer = make_trainer(tmp_path, save_best=True)
    name, seen = "layers.1+layers.2", {}

    def keep_and_spoil():
        sae = trainer.saes[name]
        if trainer.global_step > 10:
            sae.b_dec.data += 10
        seen[trainer.global_step] = {n: p.detach().clone() for n, p in sae.named_parameters()}

    trainer.fit(after_step=keep_and_spoil)
    explained = {line["step"]: line["fve"] for line in metrics(tmp_path)}
    assert max(explained, key=lambda step: explained[step]) == 10
    best = Crosscoder.load_from_disk(tmp_path / "run" / "best" / name / name)
    newest = Crosscoder.load_many(str(tmp_path / "run"), local=True)
    assert list(newest) == [name]
    assert_same(dict(best.named_parameters()), seen[10])
    assert_same(dict(newest[name].named_parameters()), seen[20])


def test_a_second_run_in_the_same_folder_is_refused_and_nothing_overwritten(tmp_path):
    make_trainer(tmp_path).fit()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="already holds a run"):
        make_trainer(tmp_path).fit()
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_resuming_with_other_options_is_refused_naming_them(tmp_path):
    make_trainer(tmp_path).fit()
    changed = make_trainer(tmp_path, "crosscoder", lr=5e-3)
    with pytest.raises(ValueError, match=r"lr: 0\.01 before, 0\.005 now"):
        changed.folder.check_resumable(changed.cfg)
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        make_trainer(tmp_path / "else").folder.check_resumable(changed.cfg)


@pytest.mark.parametrize(
    "name", ["optimizer_0.pt", "rank_0_state.pt", "layers.1+layers.2/sae.safetensors"]
)
def test_a_truncated_checkpoint_is_named_and_left_alone(name, tmp_path):
    make_trainer(tmp_path).fit()
    file = tmp_path / "run" / "checkpoints" / "step_000020" / name
    content = file.read_bytes()[:-40]
    file.write_bytes(content)
    stem = name.split("_0")[0].split("/")[-1]
    with pytest.raises(ValueError, match=f"{stem}.*damaged or truncated"):
        make_trainer(tmp_path).load_state(str(tmp_path / "run"))
    assert file.read_bytes() == content


def test_a_half_written_checkpoint_is_not_seen(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.fit()
    before = weights(tmp_path)
    trainer.global_step = 30
    trainer.optimizers.append(object())  # fails while the checkpoint is being written
    with pytest.raises(AttributeError):
        trainer.save()
    newest = trainer.folder.newest_checkpoint()
    assert newest is not None and newest.name == "step_000020"
    assert_same(before, weights(tmp_path))


def test_a_run_killed_before_it_published_its_last_checkpoint_does_so_when_resumed(tmp_path):
    make_trainer(tmp_path).fit()
    expected = weights(tmp_path)
    file = tmp_path / "run" / "layers.1+layers.2" / "sae.safetensors"
    file.unlink()  # published by a hard link: the checkpoint keeps its own
    (file.parent / ".tmp-1-cfg.json").write_text("half", encoding="utf-8")
    again = make_trainer(tmp_path)
    again.load_state(str(tmp_path / "run"))
    again.fit()
    assert_same(expected, weights(tmp_path))
    assert sorted(one.name for one in file.parent.iterdir()) == ["cfg.json", "sae.safetensors"]


def test_resuming_a_finished_run_changes_nothing_but_the_summary(tmp_path):
    first = make_trainer(tmp_path).fit()
    before = weights(tmp_path)
    again = make_trainer(tmp_path)
    again.load_state(str(tmp_path / "run"))
    assert again.fit()["fve"] == first["fve"]
    assert_same(before, weights(tmp_path))
    assert again.folder.holds_checkpoint(20)


def test_too_little_data_for_the_steps_asked_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"1,024 pairs.* 16 steps.*but 17 are asked"):
        make_trainer(tmp_path, max_steps=17, epochs=1)
    assert not list(tmp_path.iterdir())


def test_activations_that_are_not_finite_stop_the_run(tmp_path):
    data = planted_data()
    data.train.data[1][600:] = torch.nan
    data.train.order = lambda epoch: torch.arange(data.train.num_pairs)
    with pytest.raises(ValueError, match="not finite"):
        make_trainer(tmp_path, data=data, normalization_pairs=256).fit()


def test_outliers_are_left_out(tmp_path):
    data = planted_data()
    data.train.data[0][::50] *= 1000
    summary = make_trainer(tmp_path, data=data).fit()
    assert summary["dropped_in_training"]["outlier"] >= 20 * 64 * 0.015
    kept = Crosscoder.load_many(str(tmp_path / "run"), local=True)["layers.1+layers.2"]
    assert kept.mean.abs().max() < 50


def test_what_is_held_out_is_judged_by_the_runs_own_outlier_multiple(tmp_path):
    strict, usual = (
        make_trainer(tmp_path / name, outlier_multiple=multiple).fit()
        for name, multiple in (("strict", 1.1), ("usual", 3.0))
    )
    assert strict["held_out_outliers"] > usual["held_out_outliers"]
    assert strict["fve"] != strict["fve_with_outliers"]
    everything = [one["held_out_pairs"] + one["held_out_outliers"] for one in (strict, usual)]
    assert everything[0] == everything[1] > 0


def test_the_median_norms_of_the_first_pairs_are_kept_outliers_included(tmp_path):
    data = planted_data()
    data.train.data[0][::3] *= 1000
    trainer = make_trainer(tmp_path, data=data, max_steps=2)
    trainer.fit()
    kept = Crosscoder.load_many(str(tmp_path / "run"), local=True)["layers.1+layers.2"]
    expected = [x.norm(dim=1).median() for x in data.train.sample(512)]
    torch.testing.assert_close(kept.median_norms, torch.stack(expected))


class Stopped(Exception):
    pass


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("fails", [False, True])
def test_training_leaves_the_process_as_it_was(precision, fails, tmp_path):
    seen = []

    def look():
        seen.append(torch.get_float32_matmul_precision())
        if fails:
            raise Stopped

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    try:
        with pytest.raises(Stopped) if fails else nullcontext():
            make_trainer(tmp_path, max_steps=2).fit(look)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"highest"}
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads and torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("optimizer", ["adam", "muon", "signum"])
def test_a_learning_rate_of_0_is_one(optimizer, tmp_path):
    trainer = make_trainer(tmp_path, optimizer=optimizer, lr=0.0)
    assert {g["lr"] for o in trainer.optimizers for g in o.param_groups} == {0.0}
