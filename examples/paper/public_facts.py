"""What is known of the paper's models, of its results, and of GPUs; nothing here is ours."""

from __future__ import annotations

from typing import NamedTuple


class Model(NamedTuple):
    """A decoder's sizes, as its `config.json` on the hub has them."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    """Of one expert, where there are several."""

    vocab: int
    experts: int = 1
    experts_per_token: int = 1

    @property
    def attention_parameters(self) -> int:
        """Weights of one layer's four projections."""
        return 2 * self.width * self.head_dim * (self.heads + self.kv_heads)

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer, all experts and their router; norms and biases are left out."""
        router = self.width * self.experts if self.experts > 1 else 0
        return self.attention_parameters + self.experts * self._expert + router

    @property
    def active_layer_parameters(self) -> int:
        """The same, of the experts that a token goes through."""
        router = self.width * self.experts if self.experts > 1 else 0
        return self.attention_parameters + self.experts_per_token * self._expert + router

    @property
    def parameters(self) -> int:
        """Weights of the whole model, embedding and unembedding being two matrices."""
        return self.layers * self.layer_parameters + 2 * self.vocab * self.width

    @property
    def _expert(self) -> int:
        return 3 * self.width * self.mlp_width

    def flops_per_token(self, layers: int, context: int) -> int:
        """Of a forward pass through the first layers, in texts of `context` tokens.

        Every token attends to half the text on average; layers with a sliding window count as if
        they had none.
        """
        attention = 4 * self.heads * self.head_dim * context // 2
        return layers * (2 * self.active_layer_parameters + attention)


_QWEN3_8B = Model(4096, 36, 32, 8, 128, 12_288, 151_936)
MODELS = {
    "meta-llama/Llama-3.1-8B-Instruct": Model(4096, 32, 32, 8, 128, 14_336, 128_256),
    "Qwen/Qwen3-8B": _QWEN3_8B,
    "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B": _QWEN3_8B,
    "openai/gpt-oss-20b": Model(2880, 24, 64, 8, 64, 2880, 201_088, 32, 4),
}
"""From https://huggingface.co/NAME/blob/main/config.json, by the names there."""


class Diff(NamedTuple):
    """What the paper found in a diff, which says how much there is to judge."""

    tokenizers: str
    """Heading of the two models' tokenizers in examples/benchmarks/alignment.md."""

    dead_fraction: float
    """Of all latents."""

    exclusive_alive: int
    """Of both models."""

    exclusive_flagged: int

    seeds: int
    """With which its DFC was trained (3.3.1)."""


DIFFS = {
    "llama_qwen": Diff("Llama 3.1 + Qwen 3", 0.05, 5_929 + 5_178, 251 + 351, 3),  # Table 1, C.5.1
    # C.7.1, where the share of the dead is that of the exclusive latents: of all it is not stated.
    "gptoss_deepseek": Diff(
        "GPT-OSS + DeepSeek", 1 - (6_505 + 6_532) / (2 * 6_533), 6_505 + 6_532, 185 + 276, 1
    ),
}
"""By the name of the YAML file."""

PAPER_HARVEST_GPU_HOURS = 3 * 24.0  # Appendix A, H100 80 GB
PAPER_TRAINING_GPU_HOURS = 24.0  # Appendix A, for one crosscoder
PAPER_REQUESTS = 500_000  # Appendix A, for one experiment


class GPU(NamedTuple):
    """A GPU's dense peak rates, from its maker's data sheet (SXM modules)."""

    bf16_flops: float
    fp32_flops: float
    memory_bandwidth: float
    """Bytes per second."""

    memory_bytes: float

    @property
    def limits(self) -> dict[str, float]:
        """As the benchmark of the training step names them."""
        return {
            "gemm_bf16_flops": self.bf16_flops,
            "gemm_fp32_flops": self.fp32_flops,
            "memory_bytes": self.memory_bandwidth,
        }


GPUS = {
    "H100": GPU(989e12, 67e12, 3.35e12, 80e9),
    "H200": GPU(989e12, 67e12, 4.8e12, 141e9),
    "A100": GPU(312e12, 19.5e12, 2.04e12, 80e9),
}
