"""Engines elsewhere that aren't what they should be, or say what they shouldn't: the worst is a sentence."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from chat import cli, remote
from chat.conversation import Conversation
from chat.remote import KEY_VARIABLE, Endpoint
from chat.remote_engine import RemoteEngine, Served
from chat.remote_menu import Elsewhere
from chat.reply import Sessions
from core.entry import Entry
from core.errors import ChatError, EngineDied
from tests.integration.elsewhere import asked, endpoints, opened, reply
from tests.integration.running_app import App, copy_app
from tests.integration.stranger import EVENTS, JSON, Answer, Stranger, event, models, said


def wrong(**paths: Callable[[Any], Answer]) -> Callable[[], Stranger]:
    return lambda: Stranger(**paths)


WRONG: dict[str, tuple[Callable[[], Stranger], str]] = {
    "not an API": (wrong(), "there is no OpenAI-compatible API there"),
    "a page": (wrong(v1_models=lambda _: (200, "text/html", [b"<html>"])), "is no LLM engine"),
    "another JSON": (wrong(v1_models=said([1, 2])), "is no LLM engine"),
    "nested": (wrong(v1_models=lambda _: (200, JSON, [b"[" * 100_000])), "is no LLM engine"),
    "no model": (wrong(v1_models=said({"data": [{"id": 5}, "x"]})), "serves no model"),
    "a key is wanted": (wrong(v1_models=said({}, 401)), f"wants a key, in {KEY_VARIABLE}"),
    "still loading": (wrong(v1_models=said({"error": {"message": "Loading model"}}, 503)), "Loading model"),
    "colours": (wrong(v1_models=said({"error": "a\x1b[31m\nb\u202e"}, 500)), "it answers a[31m b\n"),
    "a false llama-server": (wrong(v1_models=models("m", owned_by="llamacpp"), props=said(5)), "like it"),
    "endless": (wrong(v1_models=lambda _: (200, JSON, repeat(b"x" * 65536))), "has no end"),
    "elsewhere": (wrong(v1_models=said({}, 302)), "sends elsewhere"),
}


@pytest.mark.parametrize("name", WRONG)
def test_who_is_no_engine_is_told_in_a_sentence_at_the_start(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, reason = WRONG[name]
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with make() as there, pytest.raises(SystemExit) as ended:
        cli.make_host(cli.parse(["--engine", there.url]), Path("models.json"))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: no engine can be used: {there.url}: ")
    assert reason in said
    assert said.count("\n") == 1


def test_who_drips_an_answer_is_waited_for_no_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def drip(body: Any) -> Answer:
        def pieces() -> Iterator[bytes]:
            while True:
                time.sleep(0.05)
                yield b" "

        return 200, JSON, pieces()

    monkeypatch.setattr(remote, "ANSWER_S", 0.5)
    with Stranger(v1_models=drip) as there, pytest.raises(ChatError, match="doesn't answer in time"):
        Elsewhere(there.url, "")


@pytest.mark.parametrize(
    ("url", "keys", "reason"),
    [
        ("127.0.0.1:8000", "", "perhaps http://127.0.0.1:8000"),
        ("ftp://host", "", "it has the form http://HOST:PORT"),
        ("http://host:port", "", "it has the form"),
        ("http://[::1", "", "it has the form"),
        ("http://", "", "it has the form"),
        ("http://host/?key=secret", "", "it has the form"),
        ("http://me:secret@host", "", f"a key goes into {KEY_VARIABLE}"),
        ("http://host,http://host/v1/", "", "is named twice"),
        ("http://host,", "", "address is empty"),
        ("http://host", "a,b", "2 keys for 1 engines"),
        ("http://host", "a\nb", "characters that no key has"),
        ("http://127.0.0.1:1", "", "nothing listens there"),
        ("http://nowhere.invalid", "", "no such host is known"),
        ("http://" + "a" * 70 + ".invalid", "", "no such host is known"),
    ],
)
def test_a_wrong_address_is_told_in_a_sentence_without_its_secrets(url: str, keys: str, reason: str) -> None:
    with pytest.raises(ChatError) as told:
        Elsewhere(url, keys)
    assert reason in str(told.value)
    assert "me:secret" not in str(told.value)


def test_https_at_a_port_without_it_says_so() -> None:
    with Stranger() as there, pytest.raises(ChatError, match="perhaps http://"):
        Elsewhere(there.url.replace("http://", "https://"), "")


def streams(*pieces: bytes, kind: str = EVENTS, status: int = 200) -> Callable[[Any], Answer]:
    return lambda body: (status, kind, pieces)


HI = event({"choices": [{"delta": {"content": "Hi"}}]})
END = event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
GOOD = {
    "comments, names and CRLF": streams(b": ping\r\n\r\nevent: x\r\n", HI.replace(b"\n", b"\r\n"), END),
    "no [DONE]": streams(HI, END),
    "nothing but [DONE] at the end": streams(HI, b"data: [DONE]\n\n"),
    "data: without a space": streams(HI.replace(b"data: ", b"data:"), END, b"data:[DONE]\n\n"),
    "not streamed": streams(
        json.dumps({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}).encode(), kind=JSON
    ),
}
BAD = {
    "garbage": streams(b"data: {nothing\n\n"),
    "not an object": streams(b"data: 5\n\n"),
    "nested": streams(b"data: " + b"[" * 100_000 + b"\n\n"),
    "other types": streams(event({"choices": {"a": 1}})),
    "choices of nothing": streams(event({"choices": [None]})),
    "content of numbers": streams(event({"choices": [{"delta": {"content": 5}}]})),
    "usage of words": streams(HI, event({"usage": {"prompt_tokens": "many"}})),
    "no number": streams(HI, b'data: {"usage": {"prompt_tokens": 1e999}}\n\n', END),
    "an endless line": lambda body: (200, EVENTS, (b"data: ", *repeat(b"x" * 65536, 32))),
    "an error inside": streams(HI, event({"error": {"message": "CUDA died", "code": 500}})),
    "hung up": streams(HI),
    "an end at once": streams(b"data: [DONE]\n\n"),
    "500": streams(b"<html>", status=500),
    "refused": streams(b'{"error": {"message": "max_tokens is too large"}}', status=400, kind=JSON),
}


def talked(answer: Callable[[Any], Answer]) -> Conversation:
    with Stranger(v1_models=models("m"), v1_chat_completions=answer) as there, opened([there.url]) as host:
        chat = asked(host, "Hello?")
        reply(host, chat)
        assert "the repetition penalty aren't sent" in host.warning(host.default)
    return chat


@pytest.mark.parametrize("name", GOOD)
def test_a_stream_in_any_usual_form_is_read(name: str) -> None:
    last = talked(GOOD[name]).messages[-1]
    assert (last.content, last.finish_reason) == ("Hi", "stop")


@pytest.mark.parametrize("name", BAD)
def test_a_bad_stream_is_a_sentence_and_nothing_worse(name: str) -> None:
    with pytest.raises(ChatError) as told:
        talked(BAD[name])
    assert "127.0.0.1" in str(told.value)
    assert len(str(told.value)) < 500


def test_broken_characters_become_whole_and_thoughts_stay_apart() -> None:
    pieces = [
        event({"choices": [{"delta": {"reasoning_content": "Hm"}}]}),
        event({"choices": [{"delta": {"content": "a<script>"}}]}),
        b'data: {"choices": [{"delta": {"content": "\\ud800 \xff"}}]}\n\n',
        END,
    ]
    last = talked(streams(*pieces)).messages[-1]
    assert (last.reasoning_content, last.content) == ("Hm", "a<script>? \ufffd")


def endless(body: Any) -> Answer:
    def pieces() -> Iterator[bytes]:
        while True:
            time.sleep(0.02)
            yield HI

    return 200, EVENTS, pieces()


def check_that_stop_hangs_up(there: Stranger) -> None:
    with opened([there.url]) as host:
        sessions, chat = Sessions(host), asked(host, "Hello?")
        for state in sessions.reply("tab", chat):
            if state.generated_tokens > 3:
                sessions.stop("tab")
        assert state.stats.finish_reason == "cancelled"
        assert there.hung_up.wait(10)


def test_stop_hangs_up() -> None:
    with Stranger(v1_models=models("m"), v1_chat_completions=endless) as there:
        check_that_stop_hangs_up(there)


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl here, which makes a certificate")
def test_a_certificate_is_checked_and_stop_hangs_up_there_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.pem"
    options = "-x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -addext subjectAltName=IP:127.0.0.1"
    command = ["openssl", "req", *options.split(), "-keyout", own, "-out", tmp_path / "public.pem"]
    subprocess.run(command, check=True, capture_output=True)
    own.write_text(own.read_text() + (tmp_path / "public.pem").read_text())
    with Stranger(certificate=own, v1_models=models("m"), v1_chat_completions=endless) as there:
        with pytest.raises(ChatError, match=r"its certificate is not trusted .* SSL_CERT_FILE"):
            Elsewhere(there.url, "")
        with pytest.raises(ChatError, match="perhaps https://"):
            Elsewhere(there.url.replace("https://", "http://"), "")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "public.pem"))
        check_that_stop_hangs_up(there)


def test_a_full_engine_sends_the_chat_to_another() -> None:
    def full(body: Any) -> Answer:
        return 429, JSON, [b'{"error": {"message": "too many requests"}}']

    with (
        Stranger(v1_models=models("m"), v1_chat_completions=full) as first,
        Stranger(v1_models=models("m"), v1_chat_completions=streams(HI, END)) as second,
        opened([first.url, second.url]) as host,
    ):
        chat = asked(host, "Hello?")
        reply(host, chat)
        assert chat.messages[-1].content == "Hi"
        assert endpoints(host)[0].up


def test_a_full_engine_keeps_its_chats_and_gets_no_more() -> None:
    places = [Endpoint(f"http://host{number}") for number in range(2)]
    for place in places:
        place.reason, place.slots = "", 1
    served = Served("m", Entry.model_construct(sources=[], n_ctx=2048), None, at=dict.fromkeys(places, "m"))
    engine = RemoteEngine(served, 2048, {})
    with engine.taking("a", {}) as home:
        with engine.taking("b", {}) as other:
            assert other is not home
            with engine.taking("c", {}):  # all are full: it waits where the line is shortest
                pass
        with engine.taking("a", {}) as second:
            assert second is other
    with engine.taking("b", {}) as same:
        assert same is other
    with (
        pytest.raises(EngineDied, match="http://host0: it is tired"),
        engine.taking("d", dict.fromkeys([home, other], "it is tired")),
    ):
        pass


def test_models_elsewhere_take_no_turns_and_a_busy_answer_to_a_look_is_no_death() -> None:
    with (
        Stranger(v1_models=models("one", "two"), v1_chat_completions=streams(HI, END)) as there,
        opened([there.url]) as host,
        host.use("one"),
    ):
        chat = asked(host, "Hello?")
        chat.use_model("two")
        reply(host, chat)
        assert chat.messages[-1].content == "Hi"
        there.paths["v1_models"] = said({}, 429)
        endpoints(host)[0].look()
        assert endpoints(host)[0].up


def test_the_page_says_what_is_not_ours_and_no_key(tmp_path: Path) -> None:
    with Stranger(v1_models=models("Their model"), v1_chat_completions=streams(HI, END)) as there:
        app = App(copy_app(tmp_path), TUNE2CHAT_ENGINE=there.url, **{KEY_VARIABLE: "the-key"})
        try:
            page = app.wait_until_it_answers()
        finally:
            log = app.end(signal.SIGTERM)
        assert "Their model" in page
        assert "the chat template and control tokens are that engine" in page
        assert there.asked[0][2]["Authorization"] == "Bearer the-key"
        assert "the-key" not in page + log
