"""The public names, and where each is: type checkers read this, and so does `__init__`."""

from .config import CrosscoderConfig as CrosscoderConfig
from .crosscoders import Crosscoder as Crosscoder
from .crosscoders import DedicatedFeatureCrosscoder as DedicatedFeatureCrosscoder
from .crosscoders import DesignatedSharedFeatureCrosscoder as DesignatedSharedFeatureCrosscoder
from .crosscoders import DFCConfig as DFCConfig
from .crosscoders import DSFConfig as DSFConfig
from .crosscoders import RDFCConfig as RDFCConfig
from .crosscoders import ResidualDedicatedFeatureCrosscoder as ResidualDedicatedFeatureCrosscoder
from .crosscoders.partition import Partition as Partition
from .evaluation.differences import list_differences as list_differences
from .evaluation.filter import filter_exclusives as filter_exclusives
from .evaluation.latent_card import LatentCard as LatentCard
from .evaluation.latent_cards import latent_card as latent_card
from .evaluation.power import PlantConfig as PlantConfig
from .evaluation.power import planted_recall as planted_recall
from .evaluation.several_runs import compare_runs as compare_runs
from .evaluation.top import top as top
from .interventions.answer_likelihood import Answered as Answered
from .interventions.cause import Behaviour as Behaviour
from .interventions.cause import Cause as Cause
from .interventions.cause import CauseSettings as CauseSettings
from .interventions.cause import cause as cause
from .interventions.cause_texts import own_answers as own_answers
from .interventions.effects import dose_response as dose_response
from .interventions.generation import Answering as Answering
from .interventions.generation import generate as generate
from .interventions.graft import GraftConfig as GraftConfig
from .interventions.graft import Grafted as Grafted
from .interventions.graft import graft as graft
from .interventions.persona import Persona as Persona
from .interventions.persona import persona_vectors as persona_vectors
from .interventions.steering import Steering as Steering
from .interventions.steering import steered as steered
from .interventions.stitch import StitchText as StitchText
from .interventions.stitch import stitch as stitch
from .interventions.stitching import Stitching as Stitching
from .interventions.stitching import fit_stitching as fit_stitching
from .interventions.transfer import transfer as transfer
from .interventions.vectors import SteeringVector as SteeringVector
from .registry import Architecture as Architecture
from .registry import register_architecture as register_architecture
from .runs.run import Run as Run
from .store.store import ActivationStore as ActivationStore
from .text.alignment import AlignedTokens as AlignedTokens
from .text.alignment import NonContent as NonContent
from .text.alignment import align_batch as align_batch
from .text.alignment import align_tokens as align_tokens
from .training import CrosscoderTrainer as CrosscoderTrainer
from .training import DFCTrainer as DFCTrainer
from .training import DSFTrainer as DSFTrainer
from .training import RDFCTrainer as RDFCTrainer

__all__: list[str]
__version__: str
