"""Answers on disk, so that no request is paid twice."""

from __future__ import annotations

import json
import os
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import IO, Any, ClassVar
from weakref import WeakValueDictionary, finalize

from .records import RequestRecord

_BEGINNING = b'{"key":"'

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class ResultStore:
    """Answers by request key, in memory and, with a folder, in its `answers.jsonl`.

    Each line is a RequestRecord and is on disk (fsync) before its answer is handed out. Failures
    go to `failures.jsonl`, for a person to read: they are asked again. A last line torn by a crash
    is removed when the folder is opened; any other damage raises ValueError with file and line.
    One process at a time can have a folder open (BlockingIOError, except on Windows); within it,
    `ResultStore.open` gives everyone the same store.
    """

    _open: ClassVar[WeakValueDictionary[str, ResultStore]] = WeakValueDictionary()

    def __init__(self, path: str | Path | None = None):
        self.path = None if path is None else Path(path)
        self.answers: dict[str, RequestRecord] = {}
        self.failures: list[RequestRecord] = []
        """Of this process."""
        self.earlier_uncertain = 0.0
        """Dollars that earlier runs' attempts without a usable response may have cost."""
        self.batches_under_way: set[Path] = set()
        """Files of the Message Batches that this process looks after."""
        self._in_flight: dict[str, Future[RequestRecord | None]] = {}
        self._lock = Lock()
        self._files: dict[str, IO[Any]] = {}
        finalize(self, _close, self._files)
        if self.path is not None:
            self.path.mkdir(parents=True, exist_ok=True)
            self._files["lock"] = _lock(self.path)
            for name in ("answers.jsonl", "failures.jsonl"):
                records = _read(self.path / name)
                self.earlier_uncertain += sum(record.uncertain_cost for record in records)
                if name == "answers.jsonl":
                    self.answers = {record.key: record for record in records}
                self._files[name] = open(self.path / name, "ab", buffering=0)  # noqa: SIM115
        self.earlier = tuple(self.answers.values())
        """Answers that were there when the store was opened."""

    @classmethod
    def open(cls, path: str | Path | ResultStore | None) -> ResultStore:
        """The process's store in a folder; one in memory for None; a store as it is."""
        if isinstance(path, ResultStore):
            return path
        if path is None:
            return cls()
        place = str(Path(path).resolve())
        store = cls._open.get(place)
        if store is None:
            store = cls._open[place] = cls(path)
        return store

    def close(self) -> None:
        """Let other processes have the folder; the store can then no longer be written."""
        if self.path is not None:
            self._open.pop(str(self.path.resolve()), None)
        _close(self._files)

    def get(self, key: str) -> RequestRecord | None:
        return self.answers.get(key)

    def put(self, record: RequestRecord, sync: bool = True) -> None:
        """Keep an answer or a failure; without `sync` it is surely on disk only after `sync()`."""
        with self._lock:
            self._append("failures.jsonl" if record.failed else "answers.jsonl", record, sync)
            if record.failed:
                self.failures.append(record)
            else:
                self.answers[record.key] = record

    def sync(self) -> None:
        for name, file in self._files.items():
            if name != "lock":
                os.fsync(file.fileno())

    def claim(self, key: str) -> Future[RequestRecord | None] | None:
        """None if the caller is now the one to send this request, until it calls `release`.

        Otherwise the future of who is: its outcome, or None if that one gave up.
        """
        with self._lock:
            if key in self._in_flight:
                return self._in_flight[key]
            self._in_flight[key] = Future()
            return None

    def release(self, key: str, record: RequestRecord | None) -> None:
        with self._lock:
            future = self._in_flight.pop(key)
        future.set_result(record)

    def _append(self, name: str, record: RequestRecord, sync: bool) -> None:
        if self.path is None:
            return
        if name not in self._files:
            raise ValueError(f"The result store {self.path} is closed.")
        file = self._files[name]
        size = file.seek(0, os.SEEK_END)
        line = json.dumps(record.to_json(), separators=(",", ":")).encode() + b"\n"
        try:
            if file.write(line) != len(line):
                raise OSError(f"{self.path / name} could not be written: is the disk full?")
            if sync:
                os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def _read(path: Path) -> list[RequestRecord]:
    if not path.exists():
        return []
    data = path.read_bytes()
    records: list[RequestRecord] = []
    start = 0
    while start < len(data):
        end = data.find(b"\n", start) + 1
        try:
            if not end:
                raise ValueError("the line has no end")
            records.append(RequestRecord.from_json(json.loads(data[start:end])))
        except (ValueError, RecursionError) as error:
            if (end and end < len(data)) or not _torn(data[start:]):
                raise ValueError(
                    f"{path}, line {len(records) + 1}, is not a request record ({error}). Only a "
                    "last line can be torn by a crash: restore the file or remove the line."
                ) from None
            _truncate(path, start)
            break
        start = end
    return records


def _torn(line: bytes) -> bool:
    """Whether a last line is the beginning of one of ours, or empty room that a crash left."""
    text = line.rstrip(b"\n")
    if not text.strip(b"\0"):
        return True
    if not text.startswith(_BEGINNING) and not _BEGINNING.startswith(text):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return text == line  # all but its end


def _truncate(path: Path, size: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def _lock(folder: Path) -> IO[Any]:
    file = open(folder / ".lock", "w", encoding="utf-8")  # noqa: SIM115
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise BlockingIOError(
                f"Another process has the result store {folder} open. Two at once would pay for "
                "the same requests twice: wait for it or use another folder."
            ) from None
    return file


def _close(files: dict[str, IO[Any]]) -> None:
    while files:
        files.popitem()[1].close()
