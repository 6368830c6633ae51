"""Whose answers an audit's conversations end with where nobody has said it."""

from __future__ import annotations

from typing import Literal

from sparsify_crosscoder.runs.answers import load_text_tokenizers
from sparsify_crosscoder.runs.config import RunConfig
from sparsify_crosscoder.text.open_dataset import open_dataset
from sparsify_crosscoder.text.text_columns import one_column, text_column_of


def default_answers(options: RunConfig) -> Literal["mix", "none"]:
    """A mix for a data set of conversations that both models can answer, else the text as it is.

    What two models do differently may show in nothing but their own answers.
    """
    try:
        if not _is_of_conversations(options):
            return "none"
        tokenizers = load_text_tokenizers(options)
    except (ValueError, OSError):
        return "none"  # whatever is wrong is said where the texts and the models are read
    return "mix" if all(tokenizer.chat_template for tokenizer in tokenizers) else "none"


def _is_of_conversations(options: RunConfig) -> bool:
    data = open_dataset(options.dataset, options.split, options.data_args)
    column = text_column_of(data, options.dataset, options.text_column)
    asked = column == options.text_column
    return "messages" in one_column(data, column, options.dataset, asked=asked).column_names
