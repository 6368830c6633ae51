"""The paper's two diffs: files that a run accepts, with the paper's numbers, and what they take."""

import importlib
import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml

from delphi_adapters.delphi.latent_cache import CacheLayout, LatentCacheWriter
from sparsify_crosscoder import Crosscoder
from sparsify_crosscoder.crosscoders import SparseCode
from sparsify_crosscoder.runs.train import train
from tests.support.models import save_tiny_model
from tests.support.tokenizers import SENTENCES, byte_level_tokenizer, metaspace_tokenizer

PAPER = Path(__file__).parents[2] / "examples" / "paper"
audit_file = importlib.import_module("audit_file")
benchmark_tables = importlib.import_module("benchmark_tables")
estimates = importlib.import_module("estimates")
gpu_costs = importlib.import_module("gpu_costs")
judge_costs = importlib.import_module("judge_costs")
public_facts = importlib.import_module("public_facts")

NAMES = ("llama_qwen", "gptoss_deepseek")


@pytest.fixture(scope="module")
def files():
    return {name: audit_file.read_audit_file(PAPER / f"{name}.yaml") for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_has_all_that_an_audit_needs_but_the_dollars(name, files):
    audit = files[name].audit
    assert audit.judge == "claude-opus-4-1-20250805" and audit.batch is True
    assert audit.max_cost is None and audit.until == "report"


@pytest.mark.parametrize("name", NAMES)
def test_each_value_says_where_it_is_from(name):
    lines = (PAPER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert all("#" in line for line in lines if line)


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_tables_2_and_3(name, files):
    run, audit = files[name]
    assert run.pairs == 100_000_000
    assert (run.dataset, run.data_args) == ("HuggingFaceFW/fineweb", "name=sample-10BT")
    assert run.extra_datasets == ["lmsys/lmsys-chat-1m"] and run.dataset_weights == [0.5, 0.5]
    assert (run.sae.num_latents, run.sae.k, run.initial_k) == (131_072, 200, 1000)
    assert run.sae.exclusive_fractions == [0.05, 0.05] and run.sae.selection == "joint"
    assert (run.optimizer, run.lr, run.pairs_per_step) == ("adam", 1e-4, 2048)
    assert (run.max_steps, run.lr_warmup_steps, run.k_decay_steps) == (100_000, 1000, 5000)
    assert (run.auxk_alpha, run.dead_feature_threshold) == (0.03, 10_000_000)
    assert (run.sae.auxk_form, run.sae.reduce, run.sae.loss) == ("residual", "mean", "squared")
    assert (run.sae.decoder_init_norm, run.outlier_multiple) == (0.4, 2.0)
    assert (run.normalization, run.normalization_target) == ("uncentred", "half_sum")
    assert run.gradient_checkpointing is True and run.log_to_wandb is False
    assert audit.strengths == list(range(11)) and audit.max_new_tokens == 200
    assert (audit.temperature, audit.top_p, audit.prompts) == (0.7, 0.9, None)
    assert audit.latents == ["all"] and audit.explain_limit is None
    # 500 of each model's exclusive latents and 500 shared ones, beside all flagged ones.
    assert (audit.sample, 2 * audit.nulls) == (2 * 500, 500)
    assert audit.verify == public_facts.DIFFS[name].exclusive_flagged


def test_models_hookpoints_and_k_aux_are_each_diffs_own(files):
    run = files["llama_qwen"].run
    assert [run.model, *run.partners] == ["meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-8B"]
    assert run.hookpoints == ["layers.16", "layers.18"] and run.sae.k_aux == 512
    run = files["gptoss_deepseek"].run
    assert run.model == "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B"
    assert run.partners == ["openai/gpt-oss-20b"]
    assert run.hookpoints == ["layers.16", "layers.12"] and run.sae.k_aux == 1744
    assert [model.width for model in gpu_costs.models_of(run)] == [4096, 2880]


@pytest.mark.parametrize("name", NAMES)
def test_the_pairs_last_for_all_steps(name, files):
    run = files[name].run
    assert (run.pairs - run.held_out_pairs) * run.epochs // run.pairs_per_step >= run.max_steps


@pytest.mark.parametrize("name", NAMES)
def test_blocks_have_table_3s_sizes(name, files):
    blocks = gpu_costs.crosscoder_of(files[name].run).partition.blocks
    assert [block.stop - block.start for block in blocks] == [6554, 6554, 117_964]


def in_small(name, folder):
    """A file's options at sizes that train in seconds, all else as it is."""
    save_tiny_model(folder / "a", "llama", byte_level_tokenizer(), width=24)
    save_tiny_model(folder / "b", "gpt2", metaspace_tokenizer(bos=True), width=32)
    for number in range(2):
        texts = [{"text": f"{n + number}. " + " ".join(SENTENCES)} for n in range(120)]
        (folder / f"{number}.jsonl").write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
    options = yaml.safe_load((PAPER / f"{name}.yaml").read_text(encoding="utf-8")) | {
        "model_a": str(folder / "a"),
        "model_b": str(folder / "b"),
        "hookpoints": ["layers.1", "h.2"],
        "dataset": str(folder / "0.jsonl"),
        "data_args": None,
        "extra_datasets": [str(folder / "1.jsonl")],
        "pairs": 3000,
        "ctx_len": 64,
        "num_latents": 80,
        "k": 4,
        "k_aux": 8,
        "dead_feature_threshold": 256,
        "lr_warmup_steps": 2,
        "initial_k": 20,
        "k_decay_steps": 4,
        "pairs_per_step": 128,
        "max_steps": 24,
        "held_out_pairs": 256,
        "model_dtype": "float32",
        "device": "cpu",
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    run = audit_file.read_audit_file(folder / "small.yaml").run
    run.save_dir, run.run_name = str(folder), "run"
    return run


@pytest.mark.parametrize("name", NAMES)
def test_the_options_together_train_a_crosscoder(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = in_small(name, tmp_path)
    summary = train(run, torch.device("cpu")).to_dict()
    assert summary["arch"] == "dfc" and 24 * 120 < summary["pairs"] <= 24 * 128
    trained = Crosscoder.load_one(tmp_path / "run")
    assert trained.cfg.selection == "joint" and trained.cfg.auxk_form == "residual"
    assert [block.stop - block.start for block in trained.partition.blocks] == [4, 4, 72]
    assert not trained.mean.any()  # uncentred
    assert summary["dead_fraction"] > 0  # so the auxiliary loss was on


@pytest.mark.parametrize(
    ("line", "instead", "reason"),
    [
        ("model_b: Qwen/Qwen3-8B", "", "model_b"),
        ("selection: joint", "selection: both", "both"),
        ("reduce: mean", "reduced: mean", "reduced"),
    ],
)
def test_what_an_audit_refuses_ends_with_2(line, instead, reason, tmp_path, capsys):
    text = (PAPER / "llama_qwen.yaml").read_text(encoding="utf-8")
    assert line in text
    (tmp_path / "a.yaml").write_text(text.replace(line, instead), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        audit_file.read_audit_file(tmp_path / "a.yaml")
    assert ended.value.code == 2 and reason in capsys.readouterr().err


def test_parameters_and_operations_are_those_worked_out_by_hand():
    dense = public_facts.Model(8, 2, 2, 1, 4, 16, 10)
    # q and o are 8 x 8, k and v 8 x 4; three matrices of 8 x 16.
    assert dense.attention_parameters == 192 and dense.layer_parameters == 192 + 384
    assert dense.parameters == 2 * 576 + 2 * 10 * 8
    # One layer, and scores and values of 8 numbers over 5 tokens on average.
    assert dense.flops_per_token(1, context=10) == 2 * 576 + 4 * 8 * 5
    mixture = dense._replace(experts=4, experts_per_token=2)
    assert mixture.layer_parameters == 192 + 4 * 384 + 4 * 8
    assert mixture.active_layer_parameters == 192 + 2 * 384 + 4 * 8


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8.03),
        ("Qwen/Qwen3-8B", 8.19),
        ("openai/gpt-oss-20b", 20.9),
    ],
)
def test_models_have_as_many_parameters_as_their_makers_say(name, billions):
    found = public_facts.MODELS[name].parameters / 1e9
    assert found == pytest.approx(billions, rel=0.002)


def test_gpt_oss_has_3_6_billion_active_parameters():
    model = public_facts.MODELS["openai/gpt-oss-20b"]
    active = model.layers * model.active_layer_parameters + model.vocab * model.width
    assert active / 1e9 == pytest.approx(3.6, rel=0.01)


def test_a_models_layers_run_up_to_the_hookpoints_own(files):
    assert gpu_costs.layers_read(files["gptoss_deepseek"].run) == [17, 13]


def test_a_model_of_unknown_size_is_refused(files):
    run = files["llama_qwen"].run
    other = type(run).from_dict({**run.to_dict(), "partners": ["some/model"]})
    with pytest.raises(ValueError, match="some/model"):
        gpu_costs.models_of(other)


def test_memory_and_steps_are_the_benchmarks_own(files):
    run = files["llama_qwen"].run
    found = gpu_costs.training(run, public_facts.GPUS["H100"])
    dims = 4096 * (131_072 + 117_964)  # exclusive latents have their source's part alone
    assert found["weights_of_the_encoder"] == dims
    assert found["parameters"] == 2 * dims + 131_072 + 8192
    setting = gpu_costs.Setting((4096, 4096), 131_072, 2048, 200, True, "dfc")
    expected = gpu_costs.expected_bytes(setting, torch.bfloat16, dims)
    assert found["peak_bytes"] == expected["peak"]
    for one in found["steps"].values():
        assert one["ms"] == pytest.approx(one["floor_ms"] / one["reached_on_cpu"])
        assert one["hours"] == pytest.approx(one["least_hours"] / one["reached_on_cpu"])


def test_the_floor_is_as_low_as_the_memory_and_the_arithmetic_are_fast(files):
    h100 = public_facts.GPUS["H100"]
    slow_memory = h100._replace(memory_bandwidth=1e6)
    slow_arithmetic = h100._replace(bf16_flops=1e6, fp32_flops=1e6)
    gpus = [
        *(h100, public_facts.GPUS["H200"]),
        *(slow_memory, slow_memory._replace(memory_bandwidth=3e6)),
        *(slow_arithmetic, slow_arithmetic._replace(bf16_flops=3e6, fp32_flops=3e6)),
    ]
    run = files["llama_qwen"].run
    floors = [gpu_costs.training(run, gpu)["steps"]["no latent dead"]["floor_ms"] for gpu in gpus]
    assert floors[0] / 4.8 * 3.35 < floors[1] < floors[0]  # bound by memory in part
    assert floors[2] / floors[3] == pytest.approx(3)
    assert floors[4] / floors[5] == pytest.approx(3)


def test_store_bytes_are_those_of_the_shards(files):
    data = gpu_costs.data_sizes(files["gptoss_deepseek"].run, tokens_each=1.1)
    assert data["store_bytes_bfloat16"] == 100_000_000 * (2 * (4096 + 2880) + 0.125)
    assert data["store_bytes_int8"] == 100_000_000 * (4096 + 2880 + 8 + 0.125)
    assert data["tokens_per_model"] == pytest.approx(1.1e8) and data["epochs"] == 2.048


def test_a_latent_cache_takes_the_bytes_counted(tmp_path):
    num_latents, tokens, k = 300, 2 * CacheLayout.ctx_len, 6
    generator = torch.Generator().manual_seed(0)
    latents = torch.rand(tokens, num_latents, generator=generator).topk(k).indices.sort(1).values
    rows = torch.arange(tokens).repeat_interleave(k)
    code = SparseCode(torch.ones(tokens * k), latents.flatten(), rows, (tokens, num_latents))
    numbers = torch.arange(tokens)
    writer = LatentCacheWriter(tmp_path, CacheLayout("layers.0", num_latents))
    writer.add(code, numbers, numbers, numbers // 10, numbers % 10)
    (part,) = (tmp_path / "layers.0" / "parts").glob("*.safetensors")
    headers = 2000
    counted = gpu_costs.part_bytes(tokens, tokens, tokens * k)
    assert counted < part.stat().st_size < counted + headers
    writer.finish({"model_name": "model"})
    files = list((tmp_path / "layers.0").glob("*.safetensors"))
    counted = gpu_costs.cache_bytes(tokens, tokens * k, num_latents)
    assert counted < sum(file.stat().st_size for file in files) < counted + headers
    # In a large cache, places of rows need 32 bits.
    entry = gpu_costs.cache_bytes(1e8, 1, 131_072) - gpu_costs.cache_bytes(1e8, 0, 131_072)
    assert entry == 3 * 4 + 2


def changed(audit, **options):
    return Namespace(**{**vars(audit), **options})


def test_steering_generates_every_direction_in_both_models():
    audit = Namespace(
        verify=5, sample=4, nulls=1, strengths=[0, 5, 10], max_new_tokens=50, prompts=None
    )
    diff = public_facts.Diff("", 0.0, exclusive_alive=100, exclusive_flagged=7, seeds=1)
    assumed = gpu_costs.Assumed(public_facts.GPUS["H100"], tokens_per_second=13.0)
    found = gpu_costs.steering(audit, diff, assumed)
    # 5 of the flagged, 4 more, and 1 of either null for each model; 3 prompts at 3 strengths.
    assert found["features"] == 13 and found["answers"] == 13 * 9 * 2
    assert found["tokens"] == 11_700
    assert found["hours"] == pytest.approx(11_700 / 13 / 3600)


def test_a_rubric_asks_both_models_every_prompt_at_every_strength():
    assumed = gpu_costs.Assumed(public_facts.GPUS["H100"], tokens_per_second=100.0)
    audit = Namespace(rubrics=["ccp_alignment"], rubric_features=3)
    found = gpu_costs.rubrics(audit, assumed)["ccp_alignment"]
    # B.5.3: 30 prompts, -4 to 4 by 0.5.
    assert found["answers"] == 3 * 30 * 17 * 2
    assert found["tokens"] % found["answers"] == 0
    assert found["hours"] == pytest.approx(found["tokens"] / 360_000)


def test_requests_are_counted_by_latent_and_direction(files):
    audit = changed(files["llama_qwen"].audit, sample=4, nulls=1)
    diff = public_facts.Diff("", 0.25, exclusive_alive=100, exclusive_flagged=7, seeds=1)
    sizes = judge_costs.Sizes(
        (1, 90.0), (4, 80.0), (1, 70.0), (3, 60.0), (6, 50.0), {"r": (9, 40.0)}
    )

    def requests(**options):
        found = judge_costs.stages(sizes, audit, diff, 1000, **options)
        return [stage.requests for stage in found]

    assert requests(latents="exclusive") == [100, 400, 7, 45, 90, 9]
    assert requests(latents="all") == [750, 3000, 52, 45, 90, 9]
    assert requests(latents="all", interpretable_share=0.2)[3:5] == [45, 18]
    audit.explain_limit = 75
    assert requests(latents="all")[:3] == [75, 300, 5]
    with pytest.raises(ValueError, match="kept"):
        requests(latents="kept")


def test_sizes_are_those_of_prompts_really_asked(files):
    audit = files["llama_qwen"].audit
    sizes = judge_costs.measure(audit)
    # 20 examples, 5 a request; interpretability, similarity and blinded for each of 3 prompts.
    assert [each for each, _ in sizes[:5]] == [1, 4, 1, 3, 6]
    explain, detect, category, clear, similar = (tokens for _, tokens in sizes[:5])
    # Both read 11 answers of 200 words of one model, a judge of similarity 11 more.
    assert 2200 < clear < 4400 and 2200 < similar - clear < 4400
    assert category < detect < explain
    shorter = judge_costs.measure(changed(audit, max_new_tokens=100))
    assert shorter[:3] == sizes[:3] and shorter.clear[1] < clear
    assert list(sizes.rubrics) == ["american_exceptionalism", "ccp_alignment"]
    assert all(tokens > 500 for _, tokens in sizes.rubrics.values())
    assert judge_costs.measure(changed(audit, no_blinded=True)).similar[0] == 3


def test_dollars_are_tokens_times_the_price():
    stage = judge_costs.Stage("", 10, 1000.0, 100)
    # Claude 4.1 Opus: 15 dollars a million tokens asked, 75 answered.
    assert judge_costs.dollars(stage, "claude-opus-4-1-20250805") == pytest.approx(0.225)
    assert judge_costs.dollars(stage, "claude-opus-4-1", batch=True) == pytest.approx(0.1125)
    with pytest.raises(ValueError, match="known: claude"):
        judge_costs.dollars(stage, "somebody")


def test_figures_are_read_from_the_benchmarks_tables(tmp_path, monkeypatch):
    (tmp_path / "a.md").write_text(
        "# One\n\n| x | n |\n|---|--:|\n| a | 1 |\n\n## Two\n\n| x | m |\n|---|---|\n| a | 5 |\n\n"
        "| x | y | n |\n|:-:|---|---|\n| a | b | 1,234 / 5,678.5 |\n| a | c | 7% |\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(benchmark_tables, "FOLDER", tmp_path)
    assert benchmark_tables.find("a.md", "One", "a", column="n") == 1
    assert benchmark_tables.find("a.md", "Two", "a", column="n") == 5678.5
    assert benchmark_tables.find("a.md", "Two", "a", "c", column="n") == 7
    with pytest.raises(ValueError, match="no n of z below 'Two'"):
        benchmark_tables.find("a.md", "Two", "z", column="n")


def test_the_script_prints_both_diffs_and_writes_its_figures(tmp_path, capsys):
    assert estimates.main(["--quick", "--json", str(tmp_path / "all.json")]) == 0
    report = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))["diffs"]
    assert list(report) == list(NAMES)
    shown = capsys.readouterr().out
    assert "not measured on a GPU" in shown
    readme = (PAPER / "README.md").read_text(encoding="utf-8")
    for one in report.values():
        assert estimates.show(one) in shown
        # What judges are asked may change with their prompts; the rest is in the README as printed.
        sizes, *_ = estimates.show(one).partition("| stage ")
        assert sizes.partition("\n")[2] in readme
        stages = one["judge"]["stages"]
        asked = sum(stage["requests"] for stage in stages[:2])
        # The paper made about 500,000 in all.
        assert 500_000 < asked < 700_000
        batches = sum(stage["dollars_by_batches"] for stage in stages)
        assert batches == pytest.approx(sum(stage["dollars"] for stage in stages) / 2)
        by_name = one["judge"]["by_batches"]
        assert by_name["claude-opus-4-1"]["all"] == pytest.approx(batches)
        assert by_name["claude-opus-4-1"]["exclusive"] < batches / 3


def test_judge_and_latents_can_be_others_than_the_files(tmp_path, capsys):
    options = ["--judge", "claude-haiku-4-5", "--latents", "exclusive"]
    file = str(PAPER / "llama_qwen.yaml")
    assert estimates.main([file, *options, "--json", str(tmp_path / "a.json")]) == 0
    judge = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["diffs"]["llama_qwen"][
        "judge"
    ]
    assert judge["stages"][0]["requests"] == 5_929 + 5_178
    assert "| claude-haiku-4-5, latents: exclusive " in capsys.readouterr().out


@pytest.mark.parametrize(
    "options", [["other.yaml"], ["--forward_share", "2"], ["--interpretable_share", "-1"]]
)
def test_wrong_use_ends_with_2(options):
    with pytest.raises(SystemExit) as ended:
        estimates.main(options)
    assert ended.value.code == 2
