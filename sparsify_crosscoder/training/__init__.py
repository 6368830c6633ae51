"""The trainers, and what only they use."""

from .trainer import CrosscoderTrainer, DFCTrainer, DSFTrainer

__all__ = ["CrosscoderTrainer", "DFCTrainer", "DSFTrainer"]
