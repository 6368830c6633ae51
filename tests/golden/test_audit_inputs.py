"""What every stage of an audit is made from: where it changes, a finished stage is done again."""

import json

import pytest

from tests.golden import internals
from tests.support.audit_texts import write_other_texts

JUDGE = "--judge claude-test --max_cost 100"
TRAINING = "--arch dfc --hookpoints layers.1 h.2 --num_latents 64 --k 4 --max_steps 30 --ctx_len 64"
MANY = (
    "--cache_ctx_len 32 --cache_windows 9 --source 1 --filter_pairs 5000 --predictability 0.4 "
    "--shadow 0.2 --min_firings 20 --null_steps 10 --power_plants 2 --power_sizes 1 "
    "--latents kept --explain_limit 8 --verify 2 "
    "--sample 1 --nulls 1 --prompts Who? Why? --chat no --strengths 0 4 --max_new_tokens 6 "
    "--temperature 0 --top_p 0.8 --generation_seed 3 --generation_batch_size 2 --no_blinded "
    "--audit_seed 1 --stitch_pairs 2000 --stitch_held_out_pairs 200 --rubrics harmless_refusal "
    "--rubric_features 1 --max_tokens 300 --concurrency 2 --batch"
)
ASKED = {
    "judged": ("MODELS", f"{JUDGE} {TRAINING}"),
    "judged_with_many_options": (
        "MODELS",
        f"{JUDGE} {TRAINING} --lr 1e-3 --exclude_tokens 1 2 --data_args a=b "
        f"--stitch_dataset PLACE/others.jsonl {MANY}",
    ),
    "unjudged": ("MODELS", f"{TRAINING} --arch rdfc --pairs 3000 --init_seeds 2"),
    "run_judged": ("--run PLACE/run", f"{JUDGE} --stitching PLACE/stitching"),
    "run_unjudged": ("--run PLACE/run", "--strengths 2 4 --null_steps 0 --stability_runs PLACE/b"),
}


@pytest.mark.parametrize("name", ASKED)
def test_inputs_of_every_stage(name, golden, run, tmp_path):
    place = str(run.parent)
    write_other_texts(tmp_path / "others.jsonl")
    first, rest = ASKED[name]
    first = first.replace("MODELS", "PLACE/llama PLACE/gpt2 --dataset PLACE/texts.txt")
    argv = f"{first} {rest} --out OUT".replace("PLACE", place).replace("OUT", str(tmp_path))
    found = json.dumps(internals.audit_inputs(argv.split()))
    for path, called in ((place, "PLACE"), (str(tmp_path), "OUT")):
        found = found.replace(path, called)
    inputs = json.loads(found)
    checkpoints = inputs["stages"]["harvest"]["options"].get("checkpoints", [])
    assert len(set(checkpoints)) == len(checkpoints)
    checkpoints[:] = [len(one) for one in checkpoints]
    golden.json(f"audit_inputs/{name}", inputs)
