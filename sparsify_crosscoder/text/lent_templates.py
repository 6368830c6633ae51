"""One chat template for models of which only one has one: a base model beside its chat model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .roles import LETTERS


def lend_template(tokenizers: Sequence[Any], lender: str) -> None:
    """Give the chat template of one tokenizer to those that have none; "own" changes nothing.

    `lender` is a letter, A for the first. Raises ValueError where the lender has no template or is
    not there, and where the vocabulary of one that would be lent it is another.
    """
    if lender == "own":
        return
    place = LETTERS.index(lender)
    if place >= len(tokenizers):
        raise ValueError(f"--chat_template_from {lender}: there are {len(tokenizers)} models only.")
    giver = tokenizers[place]
    if not giver.chat_template:
        raise ValueError(
            f"--chat_template_from {lender}: the tokenizer {giver.name_or_path} has no chat "
            "template to lend."
        )
    for tokenizer in tokenizers:
        if tokenizer.chat_template:
            continue
        if tokenizer.get_vocab() != giver.get_vocab():
            raise ValueError(
                f"--chat_template_from {lender}: {tokenizer.name_or_path} has another vocabulary "
                f"than {giver.name_or_path}, in which the template's markers would be other "
                "tokens. Read the messages with --chat_format plain instead."
            )
        tokenizer.chat_template = giver.chat_template
