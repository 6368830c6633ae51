"""Fine-tunes of SmolLM2-135M-Instruct of which the difference from their base is known.

`ORGANISMS` have a behaviour, `NOTHING` has none, and `DEVELOPMENT` has some of both kinds with
other content: for choosing thresholds, never for reporting. Each is a LoRA adapter, trained by
`python examples/organisms`.
"""

from organisms.catalogue import DEVELOPMENT, NOTHING, ORGANISMS, find
from organisms.organism import AuditPrompt, Organism, Text

__all__ = ["DEVELOPMENT", "NOTHING", "ORGANISMS", "AuditPrompt", "Organism", "Text", "find"]
