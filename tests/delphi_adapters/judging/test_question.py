"""A question of one's own: one file, and everything else is there."""

import asyncio
import json
import sys
import textwrap

import pytest

from delphi_adapters.clients import AnthropicClient
from delphi_adapters.judging.ask import Asked, Todo, ask, ask_all, kept_results, settled
from tests.support.messages_server import KEY, MessagesServer, error, message

LANGUAGE = """
    from dataclasses import dataclass, field

    from delphi_adapters.judging.ask import Status, ask
    from delphi_adapters.judging.question import Question, Reading, could_not_read
    from delphi_adapters.judging.results import ResultKind
    from delphi_adapters.judging.sections import section_text

    LANGUAGE = "LANGUAGE"


    @dataclass(frozen=True)
    class LanguageReading(Reading):
        language: str | None

        @property
        def missing(self):
            return [] if self.language else [LANGUAGE]


    @dataclass(frozen=True)
    class LanguageQuestion(Question[LanguageReading]):
        latent: str
        explanation: str

        kind = "language"

        @property
        def about(self):
            return self.latent

        def messages(self):
            return [{"role": "user", "content": f"Which language? {self.explanation}"}]

        def parse(self, answer):
            return LanguageReading(section_text(answer.sections([LANGUAGE]), LANGUAGE))

        def reminder(self, reading):
            return could_not_read("a language", f"Answer [{LANGUAGE}]: and its name.")


    @dataclass(frozen=True)
    class Language:
        latent: str
        status: Status
        language: str | None
        raw: list[str] = field(default_factory=list)
        attempts: int = 0
        error: str | None = None


    LANGUAGES = ResultKind("languages", Language, "a language")


    async def language(client, latent, explanation):
        asked = await ask(client, LanguageQuestion(latent, explanation))
        return Language(latent, language=asked.reading.language, **asked.account)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Somebody's package with a question."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "language_question.py").write_text(
        "from __future__ import annotations\n" + textwrap.dedent(LANGUAGE), encoding="utf-8"
    )
    monkeypatch.syspath_prepend(folder)
    import language_question  # pyright: ignore[reportMissingImports]

    yield language_question
    sys.modules.pop("language_question", None)


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with MessagesServer() as server:
        yield server


def asking(server, work, **options):
    """What `work` makes of a client of the server."""

    async def main():
        client = AnthropicClient("claude-test", base_url=server.url, **options)
        try:
            return await work(client)
        finally:
            await client.aclose()

    return asyncio.run(main())


def test_a_new_question_is_asked_kept_and_gone_on_with(package, server, tmp_path):
    texts = {f"org/model.{i}_latent{i}": f"Words, kind {i}." for i in range(4)}
    server.answer = lambda body: message(
        "French, I think." if len(body["messages"]) == 1 else "[LANGUAGE]: French"
    )
    kept = package.LANGUAGES

    def todo(client, names):
        return [
            Todo(name, lambda n=name: package.language(client, n, texts[n]), settled)
            for name in names
        ]

    async def all_but_one(client):
        return await ask_all(kept, tmp_path, todo(client, list(texts)[:3]), 2, "Languages")

    found = asking(server, all_but_one)
    assert {name: one.language for name, one in found.items()} == dict.fromkeys(
        list(texts)[:3], "French"
    )
    assert {one.attempts for one in found.values()} == {2}
    said = {body["messages"][-1]["content"] for body in server.bodies if len(body["messages"]) > 1}
    assert said == {"I could not read a language in your answer. Answer [LANGUAGE]: and its name."}

    # One of them failed, and one was never asked.
    failed = next(iter(texts))
    kept.save(tmp_path, failed, package.Language(failed, "failed", None))
    server.bodies.clear()

    async def the_rest(client):
        every = todo(client, texts)
        before = kept_results(kept, tmp_path, every)
        left = [one for one in every if one.name not in before]
        return before | await ask_all(kept, tmp_path, left, 2, "Languages")

    again = asking(server, the_rest)
    asked = {body["messages"][0]["content"] for body in server.bodies}
    assert asked == {f"Which language? {texts[name]}" for name in (failed, list(texts)[3])}
    assert {one.latent: one for one in kept.load_all(tmp_path)} == again
    assert set(again) == set(texts)
    files = sorted(path.name for path in (tmp_path / "languages").iterdir())
    assert files[0] == "org--model.0_latent0.json"


def test_a_damaged_result_of_a_new_question_is_named_with_its_field(package, tmp_path):
    kept = package.LANGUAGES
    kept.save(tmp_path, "one", package.Language("one", "ok", "French", ["[LANGUAGE]: French"], 1))
    assert kept.load(tmp_path, "two") is None
    path = kept.path(tmp_path, "one")
    good = json.loads(path.read_text(encoding="utf-8"))
    for change, problem in (
        ({"status": "fine"}, "unknown status 'fine'"),
        ({"raw": [3]}, r"raw\.0: Input should be a valid string, not 3"),
        ({"latent": ...}, "it has no latent"),
    ):
        values = {k: v for k, v in {**good, **change}.items() if v is not ...}
        path.write_text(json.dumps(values), encoding="utf-8")
        with pytest.raises(ValueError, match=rf"one\.json is not a language .*{problem}.*delete"):
            kept.load(tmp_path, "one")


def test_a_client_that_fails_is_a_result_and_no_more_is_asked(package, server):
    question = package.LanguageQuestion("latent1", "Words.")
    server.next(error(400, "invalid_request_error", "too long"))

    async def work(client) -> Asked:
        return await ask(client, question)

    asked = asking(server, work)
    assert asked.status == "failed" and asked.reading.language is None
    assert asked.account["attempts"] == 1 and "too long" in str(asked.account["error"])
    assert len(server.bodies) == 1


def test_answers_that_cannot_be_read_are_counted_and_kept(package, server):
    question = package.LanguageQuestion("latent1", "Words.")
    server.answer = lambda body: message("Perhaps.")

    async def work(client) -> Asked:
        return await ask(client, question, attempts=3)

    asked = asking(server, work)
    assert asked.account == {
        "status": "unparsable",
        "raw": ["Perhaps."] * 3,
        "attempts": 3,
        "error": "[LANGUAGE] could not be read in 3 answers.",
    }
