"""The trainers, and what only they use."""

from .trainer import CrosscoderTrainer, DFCTrainer, DSFTrainer, RDFCTrainer, make_trainer

__all__ = ["CrosscoderTrainer", "DFCTrainer", "DSFTrainer", "RDFCTrainer", "make_trainer"]
