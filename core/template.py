"""Chat messages to the text of a prompt, by a model's own Jinja template; import it through `core.prompt`.

Covered: what transformers' apply_chat_template does for chats of text, and system messages that a template
has no place for. Not covered: limits on time and memory, which `core.templates` adds for templates that
nobody vouches for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from core.errors import TemplateError

Messages = list[dict[str, str]]

ROLES = ("system", "user", "assistant")
# The keys under which templates look for a reply's thought. A template takes one of them, or none.
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")

# For a GGUF without a template: plain headings, which models that never saw a chat still follow, and no
# control token but the end of text after a reply, so that a model trained with it learns to stop ("" works
# as well).
FALLBACK_TEMPLATE = """\
{% for message in messages %}
{% if message['role'] == 'system' %}
{{ message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'user' %}
{{ '### User:\\n' + message['content'] + '\\n\\n' }}
{%- else %}
{{ '### Assistant:\\n' + message['content'] + eos_token + '\\n\\n' }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '### Assistant:\\n' }}
{%- endif %}"""

FALLBACK_STOP = "### User:"  # where a model that knows no end of turn begins to speak for the user

# What a template can make Jinja or Python raise.
_FAILURES = (
    *(jinja2.TemplateError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError),
    *(OSError, RuntimeError, SyntaxError, TypeError, ValueError),
)


class _Refusal(jinja2.TemplateError):
    """The template called raise_exception."""


class _Generation(Extension):
    """Tolerates `{% generation %}`, which marks replies for training, and renders what is inside."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _SafeNamespace(Namespace):
    """Jinja's namespace without underscored names, which lead out of its sandbox."""

    def __init__(*args: Any, **values: Any) -> None:
        for name in dict(*args[1:], **values):
            _refuse_underscore(name)
        Namespace.__init__(*args, **values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"namespace attribute {name!r}")


def _refuse(message: object) -> None:
    raise _Refusal(str(message))


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)  # Jinja's own escapes HTML


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    # As transformers' apply_chat_template does it (utils/chat_template_utils.py), so that renders are equal.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["namespace"] = _SafeNamespace
    return environment.from_string(template)


def _fill(
    template: str, messages: Messages, add_generation_prompt: bool, bos: str, eos: str, now: str = ""
) -> str:
    clock = {"strftime_now": lambda form: datetime.fromisoformat(now).strftime(form)} if now else {}
    return _compiled(template).render(
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        bos_token=bos,
        eos_token=eos,
        tools=None,
        documents=None,
        **clock,
    )


@lru_cache(maxsize=64)
def _folds_system(template: str, bos: str, eos: str) -> bool:
    """Tell whether `template` refuses, drops or moves a system message.

    One answer for a template, not for a chat. Mistral's Nemo shows the system text in the last turn only:
    rows to train on lose it, and every turn of a chat changes the start of its prompt. Folded, both are
    stable.
    """
    probe = [{"role": role, "content": f"z{role}z"} for role in ("system", "user", "assistant")]
    probe.append({"role": "user", "content": "zaskz"})
    try:
        text = _fill(template, probe, True, bos, eos)
    except _FAILURES:
        return True
    return not 0 <= text.find("zsystemz") < text.find("zuserz")


def render(
    template: str, messages: Messages, *, add_generation_prompt: bool, bos: str, eos: str, now: str = ""
) -> str:
    """Render a chat with a model's Jinja template, as transformers does.

    A blank system message is left out; one that the template has no place for opens the first user turn.
    `now`: the time that the template is told, in ISO format; the clock's where it is empty.

    Raises TemplateError, with a sentence, for bad messages and whatever the template does wrong. It sets no
    limit on time or memory.
    """
    chat = checked(messages)
    if chat[0]["role"] == "system" and _folds_system(template, bos, eos):
        system, chat = chat[0]["content"], chat[1:]
        if chat and chat[0]["role"] == "user":
            system += "\n\n" + chat.pop(0)["content"]
        chat.insert(0, {"role": "user", "content": system})
    try:
        return _fill(template, chat, add_generation_prompt, bos, eos, now)
    except _FAILURES as error:
        raise TemplateError(_sentence(error)) from error


def _sentence(error: BaseException) -> str:
    reason = " ".join(str(error).split())
    reason = reason if len(reason) <= 200 else reason[:197] + "..."
    match error:
        case _Refusal():
            return f"This model's chat template refuses the chat: {reason!r}. Change the chat or the model."
        case SecurityError():
            return f"This model's chat template reached into Python: {reason!r}. Don't use its file."
        case jinja2.TemplateSyntaxError():
            return (
                f"This model's chat template has a mistake in line {error.lineno}: {reason!r}. Use another."
            )
        case MemoryError():
            return "This model's chat template asked for too much memory and was stopped. Use another file."
        case _:
            name = type(error).__name__
            return f"This model's chat template failed with {name}: {reason!r}. Use another file."


def checked(messages: Messages) -> Messages:
    """Return a copy of `messages` without blank system messages and lone surrogates; raises TemplateError."""
    chat = []
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise TemplateError(f"Message {number} has the role {role!r}; use one of {', '.join(ROLES)}.")
        if not isinstance(content, str):
            kind = type(content).__name__
            raise TemplateError(f"Message {number} ({role}) holds {kind} instead of text; send text only.")
        if role != "system" or content.strip():
            thoughts = {key: message[key] for key in REASONING_KEYS if isinstance(message.get(key), str)}
            texts = {"content": content} | thoughts
            chat.append({"role": role} | {k: t.encode("utf-8", "replace").decode() for k, t in texts.items()})
    if not chat:
        raise TemplateError("The chat holds no message; write one first.")
    return chat


FILE, CONFIG, PROCESSOR = "chat_template.jinja", "tokenizer_config.json", "chat_template.json"
FOLDER = "additional_chat_templates"
DEFAULT = "default"


@dataclass(frozen=True)
class ChatTemplate:
    """`text` is empty where there is none; `others` are those with a name of their own, for tools say."""

    text: str = ""
    found_in: Path | None = None
    others: dict[str, str] = field(default_factory=dict)


def find_template(folders: Iterable[Path]) -> ChatTemplate:
    """Return the template of the first folder that has one.

    An empty template, a null and a list without a default count as none. Raises OSError and ValueError for a
    file that can't be read.
    """
    for folder in folders:
        for path, given in _places(folder):
            named = _named(given)
            if text := named.pop(DEFAULT, ""):
                return ChatTemplate(text, path, named)
    return ChatTemplate()


def write_template(template: ChatTemplate, folder: Path) -> None:
    """Write it where transformers and llama.cpp's converter read it, if tokenizer_config.json has none."""
    if not template.text:
        return
    (folder / FILE).write_text(template.text, encoding="utf-8", newline="")
    for name, text in template.others.items():
        if re.fullmatch(r"[\w-]+", name):  # it becomes the name of a file
            (folder / FOLDER).mkdir(exist_ok=True)
            (folder / FOLDER / f"{name}.jinja").write_text(text, encoding="utf-8", newline="")


def _places(folder: Path) -> Iterable[tuple[Path, Any]]:
    """The places of a folder in the order in which they count."""
    others = {path.stem: _text(path) for path in sorted((folder / FOLDER).glob("*.jinja"))}
    if (folder / FILE).is_file():
        yield folder / FILE, {**others, DEFAULT: _text(folder / FILE)}
    elif others:
        yield folder / FOLDER / f"{DEFAULT}.jinja", others
    for name in (CONFIG, PROCESSOR):
        if (folder / name).is_file():
            content = json.loads(_text(folder / name))
            yield folder / name, content.get("chat_template") if isinstance(content, dict) else None


def _named(given: Any) -> dict[str, str]:
    """The templates by name: of one text, of an object, or of transformers' list of name and template."""
    if isinstance(given, list):
        pairs = [(entry.get("name"), entry.get("template")) for entry in given if isinstance(entry, dict)]
    elif isinstance(given, dict):
        pairs = list(given.items())
    else:
        pairs = [(DEFAULT, given)]
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
