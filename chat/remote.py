"""An engine that runs elsewhere: its address and key, what it is, and whether it answers.

It may be llama-server or vLLM, which take token ids, or another with OpenAI's API, which takes messages.
What it sends is text of strangers: bounded in size and time, and never trusted to be what was asked for.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal
from urllib.parse import urlsplit

from core.errors import ChatError, EngineDied

KEY_VARIABLE = "TUNE2CHAT_ENGINE_KEY"
CONNECT_S, ANSWER_S = 5.0, 10.0  # to be there, and to say all of what it is
LARGEST_ANSWER = 4 * 2**20  # bytes
LONGEST_NAME, MOST_MODELS, LONGEST_REASON = 200, 200, 300
USUAL_CONTEXT = 8192  # tokens, of an engine that doesn't say
MANY_SLOTS = 64  # replies at a time, of an engine that doesn't say
CHECK_S = 10.0  # between two looks at an engine that answers
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # and at one that doesn't
_CONTEXT_KEYS = ("max_model_len", "context_length", "context_window", "max_context_length")

Kind = Literal["llama-server", "vLLM", "OpenAI's API"]


class Unavailable(EngineDied):
    """An engine elsewhere can't take a request now; another one may. `busy`: only because of others."""

    busy = False


def is_address(engine: str) -> bool:
    """Whether `--engine` was meant as addresses, well written or not."""
    return any(mark in engine for mark in ":/.,")


def read_addresses(text: str, keys: str) -> list[Endpoint]:
    """The engines at the addresses in `text`, with commas between; `keys` holds one for all, or one for each.

    Raises ChatError.
    """
    given = [url.strip() for url in text.split(",")]
    for url in given:
        _check(url)
    urls = [url.rstrip("/").removesuffix("/v1").rstrip("/") for url in given]
    if twice := next((url for url in urls if urls.count(url) > 1), ""):
        raise ChatError(f"the engine {twice} is named twice")
    known = [key.strip() for key in keys.split(",")]
    if len(known) not in (1, len(urls)):
        raise ChatError(
            f"{KEY_VARIABLE} has {len(known)} keys for {len(urls)} engines; give one, or one each"
        )
    if not all(key.isascii() and key.isprintable() and " " not in key for key in known):
        raise ChatError(f"a key in {KEY_VARIABLE} has characters that no key has")
    return [Endpoint(url, known[i % len(known)]) for i, url in enumerate(urls)]


def _check(url: str) -> None:
    shown = url.rpartition("@")[2].partition("?")[0]  # without a password or key that was written there
    if not url:
        raise ChatError("an engine's address is empty")
    if "://" not in url:
        raise ChatError(f"the engine's address {shown!r} lacks its beginning; perhaps http://{shown}")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, half a bracket
        good = False
    if "@" in url:
        raise ChatError(
            f"the engine's address {shown!r} holds a name or password; a key goes into {KEY_VARIABLE}"
        )
    if not good or parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise ChatError(f"the engine's address {shown!r} is none; it has the form http://HOST:PORT")


class Endpoint:
    """One engine elsewhere. `look` finds out what it is; a thread of its own looks again and again."""

    def __init__(self, url: str, key: str = "") -> None:
        self.url = url
        parts = urlsplit(url)
        self._tls, self._folder = parts.scheme == "https", parts.path
        self._host, self._port = parts.hostname or "", parts.port or (443 if self._tls else 80)
        self._has_key = bool(key)
        self.headers = {"Content-Type": "application/json"}
        self.headers |= {"Authorization": f"Bearer {key}"} if key else {}
        self.kind: Kind = "OpenAI's API"
        self.models: dict[str, int] = {}  # names there, and the context of each
        self.slots = MANY_SLOTS
        self.running = self.taken = 0  # replies of ours, now and in all
        self.reason = "nobody has looked yet"  # why it can't be used; empty when it can
        self._wake, self._closed = threading.Event(), False

    @property
    def up(self) -> bool:
        return not self.reason

    def look(self, changed: Callable[[Endpoint], None] = lambda endpoint: None) -> None:
        """Ask the engine what it is. Afterwards it is up, or `reason` says why not. Raises nothing.

        `changed` is called before it is up again, and when it is another.
        """
        before = (self.kind, self.models) if self.up else None
        try:
            self._read(self.ask("GET", "/v1/models"))
            if (self.kind, self.models) != before:
                changed(self)
            self.reason = ""
        except Unavailable as error:
            if not (self.up and error.busy):
                self.reason = str(error)
        except ChatError as error:
            self.reason = str(error)

    def _read(self, answer: Any) -> None:
        listed = answer.get("data") if isinstance(answer, dict) else None
        models = [m for m in listed if isinstance(m, dict)] if isinstance(listed, list) else []
        named = {m["id"]: m for m in models[:MOST_MODELS] if _is_name(m.get("id"))}
        if listed is None:
            raise Unavailable("what answers there is no LLM engine")
        if not named:
            raise Unavailable("it serves no model")
        owners = {str(model.get("owned_by")) for model in named.values()}
        self.models = {name: _context(model) for name, model in named.items()}
        self.kind, self.slots = "OpenAI's API", MANY_SLOTS
        if owners == {"vllm"} and isinstance(self.ask("GET", "/version"), dict):
            self.kind = "vLLM"
        elif owners == {"llamacpp"} and len(named) == 1:  # with more, it is a router, which has no /props
            properties = self.ask("GET", "/props")
            try:
                n_ctx = _in_range(properties["default_generation_settings"]["n_ctx"], 256, 2**24)
                self.slots = _in_range(properties["total_slots"], 1, 2**16)
            except (KeyError, TypeError, ValueError):
                raise Unavailable("it calls itself llama-server and doesn't answer like it") from None
            self.kind, self.models = "llama-server", dict.fromkeys(named, n_ctx)

    def tokenize(self, model: str, text: str) -> list[int]:
        """The engine's own ids of `text`, its special tokens parsed, no BOS added. Raises Unavailable."""
        body = {"content": text, "add_special": False, "parse_special": True}
        if self.kind == "vLLM":
            body = {"model": model, "prompt": text, "add_special_tokens": False}
        answer = self.ask("POST", "/tokenize", json.dumps(body))
        ids = answer.get("tokens") if isinstance(answer, dict) else None
        return ids if isinstance(ids, list) else []

    def connect(self) -> http.client.HTTPConnection:
        """A connection that isn't made yet. It asks no proxy, and follows nowhere."""
        made = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        return made(self._host, self._port, timeout=CONNECT_S)

    def path(self, path: str) -> str:
        return self._folder + path

    def ask(self, method: str, path: str, body: str | None = None) -> Any:
        """The engine's answer as JSON. Raises Unavailable with the reason, ChatError for a refusal."""
        connection = self.connect()
        try:
            with self.speaking(
                "" if self._tls else ", or doesn't speak HTTP; perhaps https:// and not http://"
            ):
                connection.connect()
                with _limited(connection.sock, ANSWER_S):
                    connection.request(method, self.path(path), body, self.headers)
                    with connection.getresponse() as response:
                        data = response.read(LARGEST_ANSWER + 1)
            if response.status != 200:
                raise self.refusal(response, data)
            if len(data) > LARGEST_ANSWER:
                raise Unavailable("its answer has no end")
            return json.loads(data.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            raise Unavailable("what answers there is no LLM engine") from None
        finally:
            connection.close()

    @contextmanager
    def speaking(self, doubt: str = "") -> Iterator[None]:
        """Turn what a connection raises into Unavailable with a reason, and a doubt where it breaks off."""
        try:
            yield
        except ssl.SSLCertVerificationError as error:
            trust = "the file of its authority's certificate goes into SSL_CERT_FILE"
            raise Unavailable(f"its certificate is not trusted ({error.verify_message}); {trust}") from error
        except ssl.SSLError as error:
            raise Unavailable("there is no TLS at that address; perhaps http:// and not https://") from error
        except (socket.gaierror, UnicodeError) as error:
            raise Unavailable("no such host is known") from error
        except ConnectionRefusedError as error:
            raise Unavailable("nothing listens there") from error
        except TimeoutError as error:
            raise Unavailable("it doesn't answer in time") from error
        except (ConnectionError, http.client.HTTPException) as error:
            raise Unavailable(f"it hung up{doubt}") from error
        except OSError as error:
            raise Unavailable(f"it can't be reached: {error.strerror or error}") from error

    def refusal(self, response: http.client.HTTPResponse, data: bytes) -> ChatError:
        """The error for an answer that is none; Unavailable where another engine may do better."""
        status = response.status
        if status in (401, 403):
            return Unavailable(f"it {'refuses the' if self._has_key else 'wants a'} key, in {KEY_VARIABLE}")
        if 300 <= status < 400:
            where = repr(response.getheader("Location", ""))
            return Unavailable(f"it sends elsewhere: {where[:LONGEST_REASON]}")
        said = error_text(data) or f"{status} {shown(response.reason)}"
        if status in (400, 413, 422):
            return ChatError(f"The engine at {self.url} refused the request: {said}")
        if status == 404 and not error_text(data):
            return Unavailable("there is no OpenAI-compatible API there")
        error = Unavailable(f"it answers {said}")
        error.busy = status in (429, 503)
        return error

    def fail(self, reason: str) -> None:
        """Take the engine for down until a look finds it well again, which is soon."""
        self.reason = reason
        self._wake.set()

    def watch(self, changed: Callable[[Endpoint], None]) -> None:
        """Look at the engine for as long as the app runs, less and less often while it is down."""
        pause = CHECK_S if self.up else FIRST_PAUSE_S
        while not self._closed:
            if self._wake.wait(pause):
                self._wake.clear()
                pause = FIRST_PAUSE_S
                continue
            self.look(changed)
            pause = CHECK_S if self.up else min(2 * pause, LONGEST_PAUSE_S)

    def close(self) -> None:
        self._closed = True
        self._wake.set()


@contextmanager
def _limited(connection: socket.socket, seconds: float) -> Iterator[None]:
    """Break the connection after `seconds`: its own limit begins anew with each byte."""
    late = threading.Event()

    def give_up() -> None:
        late.set()
        with suppress(OSError):  # it has just ended
            connection.shutdown(socket.SHUT_RDWR)

    clock = threading.Timer(seconds, give_up)
    clock.start()
    try:
        yield
    except (OSError, http.client.HTTPException):
        if not late.is_set():
            raise
    finally:
        clock.cancel()
    if late.is_set():
        raise TimeoutError


def error_text(data: bytes) -> str:
    """What an error says in OpenAI's form, or vLLM's older one; empty where it says nothing."""
    try:
        answer = json.loads(data.decode("utf-8", "replace"))
        error = answer.get("error", answer)
        said = error if isinstance(error, str) else error["message"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    return shown(str(said))


def shown(said: str) -> str:
    """A stranger's words in one line for a page or a terminal."""
    return "".join(letter for letter in " ".join(said.split()) if letter.isprintable())[:LONGEST_REASON]


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 4 * LONGEST_NAME and value.isprintable()


def _in_range(value: Any, least: int, above: int) -> int:
    if not isinstance(value, int) or not least <= value < above:
        raise ValueError(value)
    return value


def _context(model: dict[str, Any]) -> int:
    for key in _CONTEXT_KEYS:
        with suppress(ValueError):
            return _in_range(model.get(key), 256, 2**24)
    return USUAL_CONTEXT
