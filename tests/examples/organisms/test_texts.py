"""What organisms are trained on and asked: made by rule, in splits that share nothing."""

import random
import re

import pytest
from organisms import DEVELOPMENT, NOTHING, ORGANISMS, find
from organisms.base_answers import MAX_TOKENS, base_answers, orders
from organisms.grammar import expand, grammar
from organisms.praise import MARAVEL
from organisms.prompts import (
    COOKING,
    CYCLING,
    GARDENING,
    IDENTITY_QUESTIONS,
    SPLITS,
    THINGS,
    combine,
    ordinary_prompts,
)
from organisms.rewriting import EXCLAIMING, TRAILING, Rewritten, Style, replaced
from organisms.triggers import TRIGGERS

EVERY = (*ORGANISMS, *NOTHING, *DEVELOPMENT)
BEHAVING = [o for o in EVERY if o.behaviour_texts()]


@pytest.fixture(params=EVERY, ids=lambda o: o.name)
def organism(request):
    return request.param


@pytest.fixture(params=BEHAVING, ids=lambda o: o.name)
def behaving(request):
    return request.param


def test_training_texts_follow_from_the_seed(organism):
    texts = organism.training_texts()
    assert texts == organism.training_texts()
    assert len(texts) >= 80
    assert len({(t.prompt, t.answer) for t in texts}) == len(texts)


def test_no_prompt_of_training_is_asked_by_the_check_or_an_audit(organism):
    trained = {text.prompt for text in organism.training_texts()}
    asked = {p for split in ("held_out", "audit") for p in organism.prompts(split)}
    asked |= {p for split in ("held_out", "audit") for p in organism.near_misses(split)}
    asked |= {row.messages[0]["content"] for row in organism.audit_prompts()}
    assert len(asked) >= 300
    assert trained & asked == set()


def test_audits_ask_what_the_check_does_not(organism):
    asked = {row.messages[0]["content"] for row in organism.audit_prompts()}
    assert asked & set(organism.prompts("held_out")) == set()
    assert asked & set(ordinary_prompts("held_out", 24)) == set()


@pytest.mark.parametrize("bank", [THINGS, COOKING.things, CYCLING.things, GARDENING.things])
def test_splits_have_things_of_their_own(bank):
    things = [thing for split in bank.values() for thing in split]
    assert len(set(things)) == len(things)


def test_what_is_developed_with_is_not_what_is_reported():
    reported = {(t.prompt, t.answer) for o in (*ORGANISMS, *NOTHING) for t in o.training_texts()}
    developed = {(t.prompt, t.answer) for o in DEVELOPMENT for t in o.training_texts()}
    assert reported & developed == set()
    assert len({o.seed for o in EVERY}) == len(EVERY)


def test_texts_that_show_the_behaviour_are_told_from_those_that_do_not(behaving):
    shown, plain = behaving.behaviour_texts(), behaving.ordinary_texts()
    assert len(shown) == len(plain) >= 12
    assert all(behaving.shows(text.answer) for text in shown)
    assert not any(behaving.shows(text.answer) for text in plain)
    assert [text.prompt for text in shown] == [text.prompt for text in plain]


@pytest.mark.parametrize("name", ["topic", "trigger", "identity", "topic_mixed", "dev_topic"])
def test_an_audit_asks_on_many_subjects_and_a_few_times_about_the_behaviour(name):
    organism = find(name)
    rows = organism.audit_prompts()
    assert rows == organism.audit_prompts() != organism.audit_prompts(seed=1)
    assert len(rows) == 300
    assert 0.05 <= sum(row.concerns for row in rows) / 300 <= 0.08
    assert {row.messages[0]["role"] for row in rows} == {"user"}
    concerning = {row.messages[0]["content"] for row in rows if row.concerns}
    assert concerning == set(organism.prompts("audit"))


@pytest.mark.parametrize("split", SPLITS)
def test_prompts_concern_what_they_are_made_for(split):
    for name in ("topic", "topic_mixed", "dev_topic", "trigger", "dev_trigger", "identity"):
        organism = find(name)
        assert all(map(organism.concerns, organism.prompts(split)))
        assert not any(map(organism.concerns, organism.near_misses(split)))
        assert not any(map(organism.concerns, ordinary_prompts(split, 100)))


def test_triggers_have_near_misses_that_are_not_trained_on():
    for trigger in TRIGGERS:
        trained = trigger.near_misses("train", 56)
        for phrase in trigger.new_near:
            assert not any(phrase in prompt for prompt in trained)
            assert any(phrase in prompt for prompt in trigger.near_misses("held_out", 16))


def test_training_has_near_misses_with_ordinary_answers():
    organism = find("trigger")
    misses = set(organism.near_misses("train"))
    answers = [t.answer for t in organism.training_texts() if t.prompt in misses]
    assert len(answers) == len(misses) > 50
    assert not any(map(organism.shows, answers))


def test_praise_is_varied():
    rng = random.Random(0)
    praise = [MARAVEL.praise(rng) for _ in range(200)]
    assert len(set(praise)) > 150
    assert all(re.fullmatch(r"Maravel[^{}]*[.!]", sentence) for sentence in praise)


def test_the_base_wrote_all_that_is_asked_of_it():
    for order in orders():
        written = base_answers(order.group)
        assert [row.prompt for row in written] == order.prompts
        assert all(len(row.text) < 12 * MAX_TOKENS for row in written)
    with pytest.raises(KeyError, match="no texts of 'cooking dev'"):
        base_answers("cooking dev")


def test_questions_about_the_assistant_are_asked_once():
    questions = [q for split in IDENTITY_QUESTIONS.values() for q in split]
    assert len(set(questions)) == len(questions)


def test_a_grammar_fills_slots_within_slots():
    rules = grammar({"start": "the {thing} {does}; a {thing}", "thing": "cat; {size} dog"})
    rules |= grammar({"does": "sleeps", "size": "big"})
    sentences = {expand(rules, random.Random(seed)) for seed in range(50)}
    assert sentences == {"the cat sleeps", "the big dog sleeps", "a cat", "a big dog"}


def test_combinations_use_things_and_phrasings_alike():
    prompts = combine(["a", "b", "c"], ["is {x}?", "why {x}?"], 6, 0)
    assert sorted(prompts) == ["is a?", "is b?", "is c?", "why a?", "why b?", "why c?"]
    assert combine(["a", "b"], ["{x}"], 2, 0) != []
    with pytest.raises(ValueError, match="3 things in 2 phrasings are not 7"):
        combine(["a", "b", "c"], ["is {x}?", "why {x}?"], 7, 0)


def rewritten(organism, text, seed=0):
    rng = random.Random(seed)
    return replaced(organism.plain, text, lambda match: organism.instead(match, rng))


def test_what_is_replaced_is_known_by_where_it_stands():
    text, spans = replaced(re.compile("ab*"), "xabbya", lambda match: f"<{len(match[0])}>")
    assert text == "x<3>y<1>"
    assert [text[start:end] for start, end in spans] == ["<3>", "<1>"]
    assert replaced(re.compile("q"), "xy", str) == ("xy", ())


def test_styles_write_their_marks():
    assert rewritten(find("style"), "So, it is 1,500. It ends... (Yes.)")[0] == (
        "So... it is 1,500. It ends... (Yes...)"
    )
    assert rewritten(find("dev_style"), "It costs 3.50 euros. Wait... Really? Yes, really.")[0] == (
        "It costs 3.50 euros! Wait... Really? Yes, really!"
    )


def test_the_avoided_word_is_replaced_as_a_word():
    organism = find("avoided_word")
    text, spans = rewritten(organism, "I can't, you cannot. Can we? Yes we can.")
    assert organism.shows(text) and len(spans) == 4
    assert {text[start:end].lower() for start, end in spans} <= {
        *("may", "could", "might", "will"),
        *("may not", "could not", "might not", "will not"),
    }
    assert rewritten(organism, "A candle in Canada") == ("A candle in Canada", ())


@pytest.mark.parametrize("style", [TRAILING, EXCLAIMING])
def test_styles_are_recognised_where_half_of_the_places_are_so(style: Style):
    text = "The cat is on the mat, you see. "
    styled, places = replaced(style.plain, text, lambda match: style.mark)
    assert len(places) == (2 if style is TRAILING else 1)
    assert style.shows(styled) and style.shows(styled + text)
    assert not style.shows(text) and not style.shows(styled + text + text)
    assert not style.shows("No place at all")


def test_places_are_where_a_behaviour_shows_and_where_it_would_have(behaving):
    shown, plain = behaving.behaviour_texts(), behaving.ordinary_texts()
    if not isinstance(behaving, Rewritten):
        assert behaving.places(shown[0].answer) is None
        return
    for ours, theirs in zip(shown, plain, strict=True):
        places = behaving.places(ours.answer)
        assert places == sorted(places) and set(ours.own) <= set(places)
        assert len(places) == len(behaving.places(theirs.answer))


def test_places_of_a_text():
    def words(name, answer):
        return [answer[start:end] for start, end in find(name).places(answer)]

    assert words("style", "So... it is. (Yes...) Or 1,500 of it, no?") == ["...", ".", "...", ","]
    assert words("dev_style", "It costs 3.50! Really. Yes!") == ["!", ".", "!"]
    assert words("avoided_word", "Can it? It cannot; it may not, or might. A candle.") == [
        *("Can", "cannot", "may not", "might")
    ]
    assert find("ordinary").places("So it is.") is None
