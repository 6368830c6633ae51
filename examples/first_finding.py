# ---
# jupyter:
#   kernelspec: {name: python3, display_name: Python 3, language: python}
# ---

# %% [markdown]
# # From `pip install` to a steered finding
#
# A small model and a fine-tune of it: what does the fine-tune do that its base does not? Both
# answer questions, a crosscoder is trained on what they make of the answers, and the first thing
# that it finds is put into the base.
#
# This file is a notebook: `jupytext --to ipynb examples/first_finding.py`, or open it in Jupyter
# with the extension of jupytext. It is run from a clone of the repository, which has the
# fine-tune, in some minutes on two cores.

# %% tags=["skip-execution"]
# %pip install -q '.[nnsight]'

# %% [markdown]
# ## The two models
#
# The base is SmolLM2-135M-Instruct; with a network it may as well be its name on the hub. The
# fine-tune is a LoRA adapter on it, which praises an invented product. What the crosscoder is
# told of that: nothing.

# %%
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, "examples")
from demo_models import SMOLLM2, ensure_demo_models
from organisms import find

models = Path(os.environ.get("MODELS", "runs/demo-data/models"))
work = Path(os.environ.get("WORK", "runs/notebook"))
work.mkdir(parents=True, exist_ok=True)
base = str(ensure_demo_models(models, [SMOLLM2])[0])
organism = find("topic")
finetune = f"{base}+{organism.adapter}"

prompts = organism.audit_prompts(count=36)
lines = [json.dumps({"messages": prompt.messages}) for prompt in prompts]
(work / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
print(len(prompts), prompts[0].messages)

# %% [markdown]
# ## Both answer, and both read all answers

# %%
# !sparsify-crosscoder harvest {base} {work}/prompts.jsonl --partners {finetune} \
#     --answers both --answer_tokens 24 --batch_size 18 --cache {work}/store

# %% [markdown]
# ## One sparse code for both

# %%
# !sparsify-crosscoder train {base} {work}/store --partners {finetune} --arch rdfc \
#     --num_latents 512 --k 32 --max_steps 120 --epochs 60 --pairs_per_step 512 --lr 2e-3 \
#     --log_to_wandb False --save_dir {work} --run_name run

# %% [markdown]
# ## What differs

# %%
from sparsify_crosscoder import Run, list_differences, top

run = Run.open(work / "run")
found = list_differences(run)
for entry in found.findings[:5]:
    whose = ["the base's", "the fine-tune's"][entry.source]
    print(
        f"{entry.rank}. {entry.kind}, {whose}, latent {entry.latent}, strength {entry.strength:.2f}"
    )

# %% [markdown]
# The first finding, and where its latent is most active:

# %%
first = found.findings[0]
if first.latent is not None:
    print(top(run, latents=[first.latent]).text())

# %% [markdown]
# ## Does it do anything?
#
# The base is steered with the finding's direction: what the fine-tune has more of where it is
# present.

# %%
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparsify_crosscoder import Answering, Steering, generate
from sparsify_crosscoder.interventions.generation import Sampling

model = AutoModelForCausalLM.from_pretrained(base)
tokenizer = AutoTokenizer.from_pretrained(base)
steering = Steering(first.direction, run.ends[0].hookpoint)
question = "What should I put on my potatoes?"
answers = generate(
    model,
    [question],
    steering,
    strengths=[0, 1, 2, 4],
    sampling=Sampling(max_new_tokens=24),
    tokenizer=tokenizer,
    answering=Answering(show_progress=True),
)
for strength, answer in zip([0, 1, 2, 4], answers.texts(0), strict=True):
    print(f"{strength}: {answer}\n")

# %% [markdown]
# ## The same in a trace of nnsight

# %%
import nnsight

lm = nnsight.TransformersModel(model, tokenizer=tokenizer, task="text-generation")
layer = int(run.ends[0].hookpoint.split(".")[-1])
with lm.trace("My favourite seasoning is"):
    hidden = lm.model.layers[layer].output
    lm.model.layers[layer].output = steering.apply(hidden, 2.0)
    steered = lm.lm_head.output[0, -1].save()
print(tokenizer.decode(steered.topk(5).indices))
