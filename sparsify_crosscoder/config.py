"""What the configurations of all architectures share, and the options of training.

The docstring under a field is its text in ``--help``. Numbers with a section beside them are the
paper's (Cross-Architecture Model Diffing with Crosscoders, Tables 2 and 3 and Appendix B).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from simple_parsing import field
from sparsify import SparseCoderConfig, TrainConfig

INITIAL_K_FACTOR = 5  # 1000 / 200, B.1.3
K_DECAY_STEPS = 5_000  # B.1.3
WARMUP_STEPS = 1_000  # Table 2
LEARNING_RATE = 1e-4  # Table 2
THRESHOLD_START_STEP = 1_000
THRESHOLD_WINDOW = 1_000  # an EMA of decay 0.999


@dataclass
class CrosscoderConfig(SparseCoderConfig):
    """Standard crosscoder: every latent reads and writes every source (section 2.1)."""

    activation: Literal["batchtopk"] = "batchtopk"
    """Activation function: the largest entries of the whole batch stay (Bussmann et al. 2024)."""

    expansion_factor: int = 32  # Table 2
    """Multiple of the widest source's width to use as the number of latents."""

    normalize_decoder: bool = False
    """Must stay off: relative decoder norms carry the result of a crosscoder."""

    k: int = 200  # Table 2
    """Mean number of active latents per pair."""

    decoder_init_norm: float = 0.4  # Table 2
    """L2 norm of every latent's decoder in each source at initialisation."""

    reduce: Literal["sum", "mean"] = "sum"
    """How a latent joins its sources' pre-activations. `mean` divides by the number of sources
    that the latent may read."""

    rank_by: Literal["score", "mean", "activation"] = "score"
    """What BatchTopK and the inference threshold compare: the activation times the sum over
    sources of the latent's decoder norms, times their mean over the sources that the latent may
    write, or the activation alone. The sum favours latents of many sources."""

    loss: Literal["squared", "l2"] = "squared"
    """Reconstruction loss: squared L2 norm (equation 2), or the unsquared norm of each pair's
    error in each source."""

    auxk_form: Literal["activation", "residual"] = "activation"
    """What chooses the dead latents of the auxiliary loss: their activation on the input, or their
    encoder's response to the residual (B.1.5)."""

    screening: Literal["auto", "bfloat16", "exact"] = "auto"
    """Precision of the product that finds what BatchTopK may select. What is selected is the same,
    in full precision. `auto` is bfloat16 where the device is fast at it."""

    auxk_products: Literal["float32", "tf32"] = "float32"
    """Precision of the auxiliary loss's products with all dead latents' rows, on a GPU. `tf32` is
    several times as fast, and rounds its factors to 10 bits."""

    k_aux: int = 0
    """Dead latents per pair in the auxiliary loss. If 0, half the mean source width (Table 3)."""

    def __post_init__(self):
        if self.normalize_decoder:
            raise ValueError(
                "normalize_decoder=True would erase the relative decoder norms that a crosscoder "
                "is trained for; leave it off."
            )
        for name in ("multi_topk", "skip_connection", "transcode"):
            if getattr(self, name):
                raise ValueError(f"{name} is not available for crosscoders; leave it off.")
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}.")
        if self.decoder_init_norm <= 0:
            raise ValueError(f"decoder_init_norm must be positive, got {self.decoder_init_norm}.")

    def resolve_num_latents(self, d_sources: list[int]) -> int:
        """Number of latents for sources of these widths, checked against `k`."""
        num_latents = self.num_latents or self.expansion_factor * max(d_sources)
        if self.k > num_latents:
            raise ValueError(
                f"k={self.k} is larger than the dictionary of {num_latents} latents; "
                f"lower --k or raise --num_latents."
            )
        return num_latents


@dataclass
class CrosscoderTrainConfig(TrainConfig):
    """sparsify's training options, with those that pairs of activations need beside them."""

    sae: CrosscoderConfig = field(default_factory=CrosscoderConfig)

    optimizer: Literal["adam", "muon", "signum"] = "adam"  # Table 2
    """Optimizer to use."""

    lr: float | None = None
    """Base LR. If None, 1e-4 for adam, and sparsify's own choice for muon and signum."""

    lr_warmup_steps: int | None = None
    """Steps over which to warm up the learning rate, which is constant afterwards. If None, a
    hundredth of the run, at most 1,000."""

    lr_decay_steps: int = 0
    """Last steps of the run, over which the learning rate falls linearly to 0."""

    k_decay_steps: int | None = None
    """Steps over which k falls linearly from `initial_k` to its final value. If None, a twentieth
    of the run, at most 5,000."""

    initial_k: int | None = None
    """k at the first step. If None, five times the final k."""

    auxk_alpha: float = 0.03  # Table 2
    """Weight of the auxiliary loss that revives dead latents."""

    pairs_per_step: int = 2048  # Table 2
    """Aligned pairs in one step's batch, over all ranks."""

    max_steps: int | None = None
    """Steps to train for. If None, as many as the dataset gives in `epochs`."""

    epochs: int = 1
    """How often the dataset may be used."""

    grad_clip: float = 1.0
    """Largest norm of a step's gradient. 0 for no clipping."""

    gradient_checkpointing: bool = False
    """Recompute the decoding in the backward pass instead of keeping it."""

    outlier_multiple: float = 2.0  # B.1.4
    """Leave out pairs whose norm exceeds this multiple of the batch's median in any source. 0 to
    keep all."""

    normalization: Literal["centred", "uncentred", "none"] = "centred"
    """Whether the scale of a source is taken around its mean (and the mean is removed)."""

    normalization_target: Literal["mean", "half_sum"] = "mean"
    """The median norm to scale to: sqrt(mean(d)) or sqrt(sum(d)) / 2, two readings of B.1."""

    normalization_pairs: int = 16384
    """Pairs from which means, scales and the initial decoder bias are estimated."""

    buffer_pairs: int = 65536
    """Pairs that are shuffled together when activations are harvested during training."""

    held_out_pairs: int = 8192
    """Pairs, of whole texts, that are kept for the evaluation at the end. 0 for none."""

    threshold_start_step: int | None = None
    """First step that moves the inference thresholds. If None, where k is final, at most 1,000."""

    threshold_decay: float | None = None
    """Decay of the thresholds' moving average. If None, 0.999, or faster in runs of fewer than
    20,000 steps."""

    log_every: int = 10
    """Steps between two lines of `metrics.jsonl`."""

    trained_on: Any = field(default=None, cmd=False, to_dict=False)
    """Of a run that was begun, the models and texts that it recorded then (`runs.provenance`).
    """

    def __post_init__(self):
        super().__post_init__()
        unavailable = {
            "loss_fn": self.loss_fn != "fvu",
            "distribute_modules": self.distribute_modules,
            "layer_stride": self.layer_stride != 1,
        }
        for name, is_set in unavailable.items():
            if is_set:
                raise ValueError(f"--{name} is not available for crosscoders; leave it off.")
        for name in ("pairs_per_step", "epochs", "grad_acc_steps", "micro_acc_steps", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}.")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"--max_steps must be at least 1, got {self.max_steps}.")
        if self.save_every < 1:
            raise ValueError(f"--save_every must be at least 1, got {self.save_every}.")

    def resolve_schedule(self, total_steps: int) -> None:
        """Replace every None of the schedule by its value for a run of `total_steps`."""
        if self.k_decay_steps is None:
            self.k_decay_steps = min(K_DECAY_STEPS, total_steps // 20)
        if self.lr_warmup_steps is None:
            self.lr_warmup_steps = min(WARMUP_STEPS, total_steps // 100)
        if self.initial_k is None:
            self.initial_k = INITIAL_K_FACTOR * self.sae.k
        if self.threshold_start_step is None:
            self.threshold_start_step = min(THRESHOLD_START_STEP, self.k_decay_steps)
        if self.threshold_decay is None:
            window = min(THRESHOLD_WINDOW, max(total_steps // 20, 1))
            self.threshold_decay = 1 - 1 / window
        for name in ("k_decay_steps", "lr_warmup_steps", "lr_decay_steps", "threshold_start_step"):
            if getattr(self, name) >= total_steps > 1:
                raise ValueError(
                    f"--{name} {getattr(self, name)} does not fit a run of {total_steps} steps; "
                    f"lower it or train longer."
                )
