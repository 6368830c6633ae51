"""Which texts lost much of what they say, and why it is in no pair."""

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from jinja2.exceptions import TemplateError

from .chat import SEPARATOR, Text, plain_text
from .pairing import Rendered, begins_of, pair_tokens, render
from .text_loss import ALL, LEAST_SHARE, LOOKED_AT, PARTS, PLAIN, TextLoss, said_in, visible
from .texts import rows_of
from .tokenization import SourceTokenizer

_LEAST_PART = 0.01  # of a dataset's characters, for a role to be looked at


def warn_of_loss(
    loss: TextLoss,
    texts: Dataset,
    sources: Sequence[SourceTokenizer],
    chat_format: str,
    exclude_tokens: Sequence[int] = (),
) -> None:
    """Log a warning for what lost more than half, with the commonest reason."""
    logger = logging.getLogger(__name__)
    for name, roles in loss.characters.items():
        for role, count in roles.items():
            if role == ALL and len(roles) == 2:
                continue
            matters = count.said >= _LEAST_PART * roles[ALL].said
            if not matters or count.share >= LEAST_SHARE:
                continue
            keys = [key for key in loss.lossy if key[0] == name and role in (ALL, key[1])]
            ids = sorted({id for key in keys for id in loss.lossy[key]})[:LOOKED_AT]
            why = loss_reason(
                [*rows_of(texts.with_format(None)[ids])],
                sources,
                chat_format,
                None if role == ALL else role,
                exclude_tokens,
            )
            logger.warning(
                "%s: only %.0f%% of the characters%s became pairs (%s of %s). Most often %s.",
                name,
                100 * count.share,
                "" if role in (ALL, PLAIN) else f" of {role} messages",
                f"{count.paired:,}",
                f"{count.said:,}",
                why,
            )
    for key, (messages, lost_to) in loss.extras.items():
        if key == PARTS:
            logger.warning(
                "What is no text (images, results of tools) in the contents of %s messages is not "
                "read.",
                f"{messages:,}",
            )
        elif lost_to:
            logger.warning(
                "%s in %s messages is not read: %s.",
                key,
                f"{messages:,}",
                "--chat_format plain leaves it out"
                if chat_format == "plain"
                else f"the chat template of {' and '.join(lost_to)} does not write it",
            )


def loss_reason(
    rows: Sequence[Text],
    sources: Sequence[SourceTokenizer],
    chat_format: str = "template",
    role: str | None = None,
    exclude_tokens: Sequence[int] = (),
) -> str:
    """Why most characters of the given texts (of one role in them) are in no pair."""
    reasons: Counter[str] = Counter()
    for row in rows:
        said = said_in(row, Counter())
        shown = plain_text(row) if chat_format == "plain" else row
        try:
            rendered = [render(shown, source) for source in sources]
        except TemplateError as error:
            why = f"a chat template refuses the conversation ({str(error).strip()})"
            reasons[why] += sum(map(visible, (text for _, text in said)))
            continue
        position = 0
        for label, text in said:
            if role in (None, label):
                for source, part in zip(sources, rendered, strict=True):
                    lost = _outside(text, position, part)
                    reasons[f"the chat template of {source.name} leaves it out or alters it"] += (
                        lost
                    )
            position += len(text) + len(SEPARATOR)
        plain = SEPARATOR.join(text for _, text in said)
        reasons.update(_unpaired(plain, rendered, sources, exclude_tokens))
    (why, lost), *_ = reasons.most_common(1) or [("", 0)]
    return why if lost else "the texts are shorter than two tokens"


def _outside(text: str, position: int, part: Rendered) -> int:
    """Characters of what is said at `position` that the rendered text does not have."""
    if part.spans is None:
        return 0
    inside = 0
    for start, stop, place in part.spans:
        first, last = max(place, position), min(place + stop - start, position + len(text))
        inside += visible(text[first - position : last - position]) if last > first else 0
    return visible(text) - inside


def _unpaired(
    plain: str,
    rendered: Sequence[Rendered],
    sources: Sequence[SourceTokenizer],
    exclude_tokens: Sequence[int],
) -> Counter[str]:
    """Characters that the models read and no pair stands for, by reason."""
    ids = [source.encode([part.string]) for source, part in zip(sources, rendered, strict=True)]
    pairs = pair_tokens([plain], ids, sources, [[part] for part in rendered])
    if pairs.refused:
        return Counter({why: visible(plain) for why in pairs.refused.values()})
    ends = pairs.ends
    if not len(ends):
        return Counter()
    lengths = ends - begins_of(ends, plain, rendered)
    excluded = np.isin(pairs.tokens[0].ids[pairs.indices[0]], list(exclude_tokens))
    first = len(sources[0].prefix) == 0 or not excluded[0]
    return Counter(
        {
            "its tokens are among --exclude_tokens": int(lengths[excluded].sum()),
            "the texts are so short that a window's first token, which is in no pair, is much of "
            "them": int(lengths[0]) if first else 0,
            "the tokenizers end no token at the same place": visible(plain[ends[-1] :]),
        }
    )
