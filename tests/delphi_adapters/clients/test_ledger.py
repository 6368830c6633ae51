"""Tokens, dollars and a budget."""

import asyncio
import json

import pytest

from delphi_adapters.clients import (
    BudgetExceeded,
    Ledger,
    Price,
    RequestRecord,
    UnknownPrice,
    Usage,
    load_prices,
)
from delphi_adapters.clients.ledger import DEFAULT_PRICES
from delphi_adapters.clients.requests import build_request

PRICES = {"m": {"input": 1.0, "output": 10.0, "cache_write": 1.25, "cache_read": 0.1}}


def request(text: str = "four", max_tokens: int = 10, model: str = "m"):
    return build_request(text, model=model, max_tokens=max_tokens)


def test_a_price_is_per_million_tokens_of_each_kind_and_half_in_a_batch():
    price = Price(input=1.0, output=10.0, cache_write=2.0, cache_read=0.5)
    usage = Usage(input=1_000_000, output=2_000_000, cache_write=3_000_000, cache_read=4_000_000)
    assert price.cost(usage) == 1 + 20 + 6 + 2
    assert price.cost(usage, batch=True) == 14.5


def test_prompts_over_a_model_s_limit_cost_more_cached_tokens_included():
    price = Price(1.0, 1.0, 1.0, 1.0, long_prompt_tokens=100, long_prompt_factor=5.0)
    assert price.cost(Usage(input=50, cache_read=50, output=100)) == pytest.approx(200e-6)
    assert price.cost(Usage(input=50, cache_read=51, output=99)) == pytest.approx(1000e-6)


def test_prices_are_added_and_replaced_from_a_mapping_or_a_file(tmp_path):
    model = next(iter(DEFAULT_PRICES))
    mine = {"mine": {"input": 2, "output": 3}, model: {**PRICES["m"]}}
    (tmp_path / "prices.json").write_text(json.dumps(mine), encoding="utf-8")
    for prices in (load_prices(mine), load_prices(tmp_path / "prices.json")):
        assert prices["mine"] == Price(2, 3, cache_write=2.5, cache_read=2)
        assert prices[model] == Price(1.0, 10.0, 1.25, 0.1)
        assert prices.keys() == {"mine", *DEFAULT_PRICES}
    assert load_prices({"p": Price(1, 2, 3, 4)})["p"] == Price(1, 2, 3, 4)
    assert load_prices(None) == DEFAULT_PRICES


@pytest.mark.parametrize(
    "prices",
    [
        {"m": {"input": 1}},
        {"m": {"input": 1, "output": None}},
        {"m": {"input": 1, "output": 2, "per_call": 3}},
        {"m": {"input": -1, "output": 2}},
        {"m": {"input": float("nan"), "output": 2}},
        {"m": {"input": "1", "output": 2}},
        {"m": 3},
        [],
    ],
)
def test_what_is_no_price_is_refused(prices):
    with pytest.raises(ValueError, match="price"):
        load_prices(prices)


def test_a_price_file_that_is_not_json_is_named(tmp_path):
    (tmp_path / "prices.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"prices\.json is not JSON"):
        load_prices(tmp_path / "prices.json")


def test_a_dated_name_has_the_price_of_the_name():
    ledger = Ledger(PRICES)
    assert ledger.price("m-20261001") == ledger.price("m") == Price(1.0, 10.0, 1.25, 0.1)
    assert ledger.price("m-2") is None and ledger.price("other") is None


def test_without_a_price_there_is_neither_an_estimate_nor_a_budget():
    ledger = Ledger()
    ledger.require_price("m")
    assert ledger.estimate([request()]).cost is None
    assert ledger.worst_case(request()) == 0
    with pytest.raises(UnknownPrice, match=r'prices=\{"m"'):
        Ledger(max_cost=1).require_price("m")
    with pytest.raises(ValueError, match="max_cost"):
        Ledger(max_cost=-1)


def test_the_estimate_is_four_characters_a_token_and_the_longest_answers():
    requests = [request("x" * 8), request("x" * 9, 20), request("x" * 9, 20)]
    estimate = Ledger(PRICES).estimate(requests, stored=4)
    assert (estimate.requests, estimate.stored) == (2, 4)
    assert (estimate.input_tokens, estimate.output_tokens) == (2 + 3, 30)
    assert estimate.cost == pytest.approx((5 + 300) / 1e6)
    assert Ledger(PRICES).estimate(requests, batch=True).cost == pytest.approx(305e-6 / 2)


@pytest.mark.parametrize("text", ["plain words", "모델은 두 개입니다", "😀" * 50, ""])
def test_the_worst_case_is_more_than_any_tokenizer_makes_of_the_prompt(text):
    worst = Ledger(PRICES).worst_case(request(text))
    tokens = len(text.encode())  # byte by byte, and all of it written to the cache
    assert worst > (tokens * 1.25 + 10 * 10) / 1e6


def test_the_budget_counts_what_is_reserved_and_gives_back_what_was_not_used():
    ledger = Ledger(PRICES, max_cost=1.0)
    assert ledger.try_reserve(0.6)
    assert not ledger.try_reserve(0.5)  # may fit later
    assert ledger.try_reserve(0.4)  # to the last cent
    ledger.release(0.6)
    ledger.add(RequestRecord("k", "m", usage=Usage(input=100_000), stop_reason="end_turn"))
    assert ledger.try_reserve(0.5)
    ledger.release(0.4)
    ledger.release(0.5, uncertain=True)
    assert ledger.reserved == 0
    assert ledger.cost == pytest.approx(0.1 + 0.5)
    with pytest.raises(BudgetExceeded, match=r"budget of \$1 is used up: \$0.6 are spent"):
        ledger.try_reserve(0.5)
    with pytest.raises(BudgetExceeded):  # stopped is stopped
        ledger.try_reserve(0.01)
    assert ledger.summary()["stopped_by_budget"]


def test_the_end_of_the_budget_is_not_an_exception_that_delphi_swallows():
    assert not issubclass(BudgetExceeded, Exception)


def test_who_does_not_fit_waits_for_what_is_in_flight():
    ledger = Ledger(PRICES, max_cost=1.0)
    order = []

    async def user(name: str, amount: float, turns: int):
        await ledger.reserve(amount)
        order.append(name)
        for _ in range(turns):
            await asyncio.sleep(0)
        ledger.release(amount)

    async def main():
        await asyncio.gather(user("a", 0.7, 5), user("b", 0.7, 1), user("c", 0.2, 1))

    asyncio.run(main())
    assert order == ["a", "c", "b"]


def test_earlier_answers_count_once_for_each_store_and_need_a_price_too():
    records = [
        RequestRecord("k", "m", usage=Usage(input=1_000_000), batch=b) for b in (False, True)
    ]
    ledger = Ledger(PRICES, max_cost=9)
    for place in ("here", "here", "there"):
        ledger.include(place, records, uncertain=0.25)
    assert ledger.earlier == 3.0 and ledger.uncertain == 0.5
    with pytest.raises(UnknownPrice, match="'other'"):
        ledger.include("else", [RequestRecord("k", "other")], 0.0)


def test_the_summary_has_everything_as_json():
    ledger = Ledger(PRICES)
    ledger.add(RequestRecord("a", "m", stop_reason="refusal", usage=Usage(3, 4, 5, 6), attempts=3))
    ledger.add(RequestRecord("b", "x", error="no", usage=Usage(1, 1)))
    ledger.add_stored()
    summary = json.loads(json.dumps(ledger.summary()))
    assert summary["models"]["m"] == {
        "input": 3,
        "output": 4,
        "cache_write": 5,
        "cache_read": 6,
        "priced": True,
    }
    assert summary["models"]["x"]["priced"] is False
    assert summary["outcomes"] == {"refusal": 1, "failed": 1, "stored": 1}
    assert summary["retries"] == 2
