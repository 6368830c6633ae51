"""A base model beside its chat model: one chat template for both."""

import pytest

from sparsify_crosscoder.text.lent_templates import lend_template
from tests.support.tokenizers import CHATML, byte_level_tokenizer, metaspace_tokenizer

OTHER = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def test_who_has_no_template_is_lent_one_and_who_has_one_keeps_it():
    base, chat = byte_level_tokenizer(), byte_level_tokenizer(chat_template=CHATML)
    lend_template([base, chat], "own")
    assert base.chat_template is None
    third = metaspace_tokenizer(chat_template=OTHER)
    lend_template([base, chat, third], "B")
    assert [one.chat_template for one in (base, chat, third)] == [CHATML, CHATML, OTHER]


@pytest.mark.parametrize(
    ("lender", "said"),
    [("A", "no chat template to lend"), ("B", "another vocabulary"), ("C", "2 models only")],
)
def test_what_cannot_be_lent_is_refused(lender, said):
    with pytest.raises(ValueError, match=said):
        lend_template([byte_level_tokenizer(), metaspace_tokenizer(chat_template=CHATML)], lender)
