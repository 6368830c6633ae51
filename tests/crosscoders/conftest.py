import pytest

from sparsify_crosscoder.crosscoders import preactivations


@pytest.fixture(autouse=True)
def even_small_products_are_screened(monkeypatch):
    monkeypatch.setattr(preactivations, "_CHEAP_PRODUCT", 0)
