"""Carry a vector for a trait from one of the demo's models to the other.

    python examples/transfer_a_vector.py                    sentiment, both ways
    python examples/transfer_a_vector.py --traits french    or formal, code, all

After `make demo`. The vector is the mean activation over texts that have the trait less that over
texts that have it not (`sparsify-crosscoder persona`). It is carried over by the ten shared latents
that are most like it (`sparsify-crosscoder transfer`), and steered with: does it make the trait's
words likelier there as well, and by more than ten random shared latents do?
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from shown_command import call

from sparsify_crosscoder.interventions.persona import Persona
from sparsify_crosscoder.runs.config import load_run_config

PLAIN = [
    "The cat is on the table and looks out of the window.",
    "We ate bread with cheese in the garden.",
    "The city is very beautiful and the people are happy.",
    "I do not know what you mean by that.",
    "We have to leave before the night to arrive in time.",
    "The children play in the street with their dog.",
]


@dataclass(frozen=True)
class Trait:
    """What a vector is made from, and what shows that it works."""

    persona: Persona
    words: list[str]
    prompts: list[str]


TRAITS = {
    "negative": Trait(
        Persona(
            "negative",
            [
                "The food was terrible and the service was awful. I hated every minute of it.",
                "This is the worst film I have ever seen, a boring and stupid mess.",
                "It was a horrible day. Everything went wrong and I felt miserable.",
                "The hotel was dirty, the staff were rude and the bed was awful.",
                "I am so angry and disappointed; this product is a useless piece of junk.",
                "The book was dull, badly written and a waste of my time.",
            ],
            [
                "The food was wonderful and the service was excellent. I loved every minute of it.",
                "This is the best film I have ever seen, an exciting and brilliant masterpiece.",
                "It was a beautiful day. Everything went right and I felt happy.",
                "The hotel was clean, the staff were kind and the bed was lovely.",
                "I am so happy and pleased; this product is a useful and great thing.",
                "The book was fun, well written and worth my time.",
            ],
        ),
        ["bad", "terrible", "awful", "horrible", "worst", "boring", "poor", "disappointing"],
        [
            "I think that the restaurant was",
            "The movie we saw yesterday was",
            "My opinion of this product: it is",
            "The weather this week has been",
            "Overall, the experience was",
            "The customer said that the service was",
        ],
    ),
    "french": Trait(
        Persona(
            "french",
            [
                "Le chat est sur la table et il regarde par la fenêtre.",
                "Nous avons mangé du pain avec du fromage dans le jardin.",
                "La ville est très belle et les gens sont heureux.",
                "Je ne sais pas ce que tu veux dire par cela.",
                "Il faut que nous partions avant la nuit pour arriver à temps.",
                "Les enfants jouent dans la rue avec leur chien.",
            ],
            PLAIN,
        ),
        ["le", "la", "les", "de", "des", "et", "un", "une", "que", "du"],
        [
            "I think that",
            "The man said:",
            "Yesterday we went to",
            "The house is",
            "Once upon a time",
            "In the morning",
        ],
    ),
    "code": Trait(
        Persona(
            "code",
            [
                "for i in range(10):\n    print(i)\n    total += i\n",
                "def main():\n    parser = argparse.ArgumentParser()\n"
                "    args = parser.parse_args()\n",
                "import os\nimport sys\nfrom pathlib import Path\n",
                "if x is None:\n    return []\nelse:\n    return [x]\n",
                "class Foo(object):\n    def __init__(self, x):\n        self.x = x\n",
                "with open(path) as f:\n    data = json.load(f)\n",
            ],
            PLAIN,
        ),
        ["self", "def", "return", "import", "None", "True", "class", "print"],
        [
            "I think that",
            "The man said:\n",
            "Here is what to do:\n",
            "The answer is",
            "Once upon a time",
            "In the morning",
        ],
    ),
    "formal": Trait(
        Persona(
            "formal",
            [
                "Dear Sir or Madam, I am writing to inquire about the position advertised.",
                "We hereby request that the documentation be submitted prior to the deadline.",
                "It is respectfully suggested that the committee reconsider the proposal.",
                "Please do not hesitate to contact the undersigned for further assistance.",
                "The parties shall endeavour to resolve any dispute under the agreement.",
                "Furthermore, the results demonstrate a significant improvement.",
            ],
            [
                "hey dude, lol i saw that job thing, sounds cool",
                "yo can u send me that stuff before friday ok",
                "nah i think they should just look at it again haha",
                "hit me up if ya need anything else buddy",
                "come on guys just sort it out, no big deal",
                "and yeah it got way better, pretty awesome stuff",
            ],
        ),
        ["shall", "hereby", "therefore", "furthermore", "please", "regarding", "accordance"],
        [
            "I wanted to say that",
            "About the meeting:",
            "We",
            "In this email,",
            "As for the money, we",
            "Thanks for your message.",
        ],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--traits", nargs="+", choices=[*TRAITS, "all"], default=["negative"])
    parser.add_argument("--out", type=Path, default=Path("runs/vectors"))
    parser.add_argument("--stitching", type=Path, help="compare with this folder of `stitch`")
    args = parser.parse_args()
    if not (args.run / "summary.json").exists():
        raise SystemExit(f"'{args.run}' is no finished run; `make demo` makes one.")
    options = load_run_config(args.run)
    models, hookpoints = [options.model, *options.partners], options.hookpoints
    args.out.mkdir(parents=True, exist_ok=True)
    for name in TRAITS if "all" in args.traits else args.traits:
        trait = TRAITS[name]
        persona = args.out / f"{name}.json"
        persona.write_text(json.dumps(asdict(trait.persona), indent=2), encoding="utf-8")
        for source in (0, 1):
            vector = args.out / f"{name}-{source}.safetensors"
            moved = args.out / f"{name}-{source}-to-{1 - source}.safetensors"
            precise = ["--model_dtype", "float32"]
            call(
                "persona",
                models[source],
                persona,
                "--out",
                vector,
                *precise,
                "--hookpoints",
                hookpoints[source],
            )
            stitched = ["--stitching", args.stitching] if args.stitching else []
            call(
                "transfer",
                args.run,
                vector,
                "--out",
                moved,
                *precise,
                *stitched,
                "--source",
                source,
                "--words",
                *trait.words,
                "--chat",
                "no",
                "--prompts",
                *trait.prompts,
                "--json",
                moved.with_suffix(".json"),
            )


if __name__ == "__main__":
    main()
