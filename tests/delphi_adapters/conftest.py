"""What tests share: a server with a key, and delays that are not waited."""

import asyncio

import pytest

# This folder has the name of the real package, so that its modules cannot be imported by it.
from tests.support.messages_server import KEY, MessagesServer


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server on the loopback, and a key for it in the environment."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # the SDK also looks for a profile there
    with MessagesServer() as server:
        yield server


@pytest.fixture
def sleeps():
    """Seconds that `sleep` was asked to wait."""
    return []


@pytest.fixture
def sleep(sleeps):
    """Notes delays instead of waiting."""

    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        await asyncio.sleep(0)

    return sleep
