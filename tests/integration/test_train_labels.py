"""What is trained, with real tokenizers and templates: the replies and their ends, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest

from core.errors import TemplateError, TrainError
from core.from_gguf import checkpoint_from_gguf
from core.prompt import FALLBACK_TEMPLATE, Messages
from core.tokenizer import ChatTokenizer
from tests.integration.tiny_models import tiny
from train.examples import Encoded, Example
from train.labels import encode, encode_chat

# What the templates of these two write, for chats of text.
LLAMA_2 = """\
{% for m in messages %}{% if m.role == 'user' %}
{{- bos_token + '[INST] ' }}
{%- if loop.index0 == 1 and messages[0].role == 'system' %}
{{- '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' }}{% endif %}
{{- m.content.strip() + ' [/INST]' }}
{%- elif m.role == 'assistant' %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""
# A system message goes into the last user turn, and so moves with every turn, unless the renderer folds it.
MISTRAL_V03 = """\
{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}
{{- '[INST] ' }}
{%- if messages[0].role == 'system' and m == (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}
{{- messages[0].content + '\\n\\n' }}{% endif %}
{{- m.content + '[/INST]' }}
{%- elif m.role == 'assistant' %}{{ ' ' + m.content.strip() + eos_token }}{% endif %}{% endfor %}"""
NEMO = "mistralai-Mistral-Nemo-Instruct-2407.jinja"
COUNTING = "{{ messages | length }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"

# model: vocabulary of a tiny one (or the embedded model), template (or its own), the ends of its replies
MODELS: dict[str, tuple[str, str | None, tuple[str, ...]]] = {
    "smollm2": ("", None, ("<|im_end|>",)),
    "phi-3.5": ("phi3", None, ("<|end|>",)),
    "gemma-2": ("gemma2", None, ("<end_of_turn>",)),
    "llama-2": ("llama", LLAMA_2, ("</s>",)),
    "mistral-v0.3": ("mistral", MISTRAL_V03, ("</s>",)),
    "mistral-nemo": ("mistral", NEMO, ("</s>",)),
    "no template": ("llama", "", ("</s>",)),
}
REPLIES = ("Grün ist alle Theorie.", "I'd say: 1,024 <b>bytes</b>\n\nare a kilobyte 🦙", "Yes.")
ONE_TURN: Messages = [
    {"role": "user", "content": "Say something."},
    {"role": "assistant", "content": REPLIES[0]},
]
MANY_TURNS: Messages = [
    turn
    for question, reply in zip(("A motto?", "And  the size\n", "Sure?"), REPLIES, strict=True)
    for turn in ({"role": "user", "content": question}, {"role": "assistant", "content": reply})
]
SYSTEM = {"role": "system", "content": "Answer in one line."}


@pytest.fixture(scope="module")
def load(
    tmp_path_factory: pytest.TempPathFactory, short_model: Path, llama_models: Path
) -> Callable[[str], ChatTokenizer]:
    """Give a model's tokenizer by its name in MODELS."""

    @cache
    def folder_of(family: str) -> Path:
        folder = tmp_path_factory.mktemp("labels") / (family or "smollm2")
        if family:
            return tiny(family, folder)
        checkpoint_from_gguf(short_model, folder)
        return folder

    @cache
    def tokenizer(name: str) -> ChatTokenizer:
        family, template, _ = MODELS[name]
        if template == NEMO:
            template = (llama_models / "templates" / NEMO).read_text()
        return with_template(folder_of(family), template, tmp_path_factory.mktemp("template"))

    return tokenizer


def with_template(folder: Path, template: str | None, to: Path) -> ChatTokenizer:
    """The tokenizer of `folder` with another template."""
    for path in folder.glob("*.json*"):
        shutil.copy(path, to)
    if template is None:
        for path in folder.glob("*.jinja"):
            shutil.copy(path, to)
    elif template:
        (to / "chat_template.jinja").write_text(template)
    about = to / "tokenizer_config.json"
    content = json.loads(about.read_text())
    if template is not None:
        content.pop("chat_template", None)
    about.write_text(json.dumps(content))
    return ChatTokenizer(to)


def trained(tokenizer: ChatTokenizer, row: Encoded) -> list[str]:
    """The text of each stretch of trained tokens."""
    assert len(row.ids) == len(row.mask)
    stretches = groupby(zip(row.ids, row.mask, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([i for i, _ in pairs]) for on, pairs in stretches if on]


def reference(tokenizer: ChatTokenizer, messages: Messages) -> list[int]:
    """The ids that transformers gives the chat."""
    options = {} if tokenizer.template else {"chat_template": FALLBACK_TEMPLATE}
    made: list[int] = tokenizer.tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=False, **options
    )
    if tokenizer.adds_bos and made[0] != tokenizer.bos_id:  # a template that leaves it to the tokenizer
        made = [tokenizer.bos_id or 0, *made]
    return made


def folded(messages: Messages) -> Messages:
    """The chat with its system message at the start of what the user says."""
    if messages[0] != SYSTEM:
        return messages
    content = f"{SYSTEM['content']}\n\n{messages[1]['content']}"
    return [{"role": "user", "content": content}, *messages[2:]]


CHATS = {
    "one turn": ONE_TURN,
    "many turns": MANY_TURNS,
    "one turn with a system message": [SYSTEM, *ONE_TURN],
    "many turns with a system message": [SYSTEM, *MANY_TURNS],
}
FOLDING = ("gemma-2", "mistral-v0.3", "mistral-nemo")  # no place for a system message, or one that moves


@pytest.mark.parametrize("kind", CHATS)
@pytest.mark.parametrize("name", MODELS)
def test_replies_and_their_ends_are_trained_and_nothing_else(
    name: str, kind: str, load: Callable[[str], ChatTokenizer]
) -> None:
    tokenizer, chat = load(name), CHATS[kind]
    [row] = encode_chat(tokenizer, chat)
    assert row.ids == reference(tokenizer, folded(chat) if name in FOLDING else chat)
    replies = [message["content"] for message in chat if message["role"] == "assistant"]
    found = trained(tokenizer, row)
    assert len(found) == len(replies)
    for text, reply in zip(found, replies, strict=True):
        end = next(stop for stop in MODELS[name][2] if text.endswith(stop))
        words = text.removesuffix(end)
        # Llama-2's template puts spaces around a reply and Mistral's one before it, which belong to it.
        assert (words.strip(" ") if name in ("llama-2", "mistral-v0.3") else words) == reply
    assert sum(i in tokenizer.stop_ids and m for i, m in zip(row.ids, row.mask, strict=True)) == len(replies)


@pytest.mark.parametrize("name", MODELS)
def test_the_prompt_of_a_turn_is_what_the_chat_sends(name: str, load: Callable[[str], ChatTokenizer]) -> None:
    tokenizer = load(name)
    [row] = encode_chat(tokenizer, MANY_TURNS)
    for turn in range(1, len(MANY_TURNS), 2):
        prompt = tokenizer.encoder.encode(MANY_TURNS[:turn])
        assert row.ids[: len(prompt)] == prompt
        assert not row.mask[len(prompt) - 1]
        assert row.mask[len(prompt)]


@pytest.mark.parametrize("name", MODELS)
def test_control_tokens_typed_as_text_stay_text(name: str, load: Callable[[str], ChatTokenizer]) -> None:
    tokenizer = load(name)
    stop, bos = MODELS[name][2][0], tokenizer.tokenizer.bos_token
    [plain] = encode_chat(tokenizer, MANY_TURNS)
    typed = [dict(message) for message in MANY_TURNS]
    typed[0]["content"] = f"What is {stop} and {bos}? {stop}"
    typed[3]["content"] = f"You wrote {stop} yourself."
    [row] = encode_chat(tokenizer, typed)
    control = set(tokenizer.encoder.control.values())
    assert [i for i in row.ids if i in control] == [i for i in plain.ids if i in control]
    texts = trained(tokenizer, row)
    assert [text.count(stop) for text in texts] == [1, 2, 1]
    assert texts[1].strip() == f"You wrote {stop} yourself.{' ' if name == 'llama-2' else ''}{stop}"
    assert sum(i in tokenizer.stop_ids and m for i, m in zip(row.ids, row.mask, strict=True)) == 3


def test_an_empty_reply_trains_its_end(load: Callable[[str], ChatTokenizer]) -> None:
    tokenizer = load("phi-3.5")
    chat = [ONE_TURN[0], {"role": "assistant", "content": ""}]
    assert trained(tokenizer, *encode_chat(tokenizer, chat)) == ["<|end|>"]


def test_a_template_that_rewrites_earlier_turns_is_refused(
    load: Callable[[str], ChatTokenizer], tmp_path: Path
) -> None:
    tokenizer = with_template(Path(load("llama-2").tokenizer.name_or_path), COUNTING, tmp_path)
    with pytest.raises(TrainError, match=r"changes what comes before turn 2 once it is answered.*one turn"):
        encode_chat(tokenizer, MANY_TURNS)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
        # one end for the chat, none for the turns before the last
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% else %}{{ eos_token }}{% endif %}",
        # the next end is that of a user's turn
        "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'user' or loop.last }}{% endfor %}",
        # the next turn begins with BOS
        "{% for m in messages %}{{ bos_token if m.role == 'user' }}{{ m.content + '\\n' }}{% endfor %}",
    ],
)
def test_a_template_without_an_end_is_refused(
    template: str, load: Callable[[str], ChatTokenizer], tmp_path: Path
) -> None:
    folder = Path(load("llama-2").tokenizer.name_or_path)
    tokenizer = with_template(folder, template, tmp_path)
    with pytest.raises(TrainError, match=r"writes no stop token after the reply 'Grün"):
        encode_chat(tokenizer, MANY_TURNS)


def test_roles_that_a_template_refuses_are_a_sentence(load: Callable[[str], ChatTokenizer]) -> None:
    with pytest.raises(TemplateError):
        encode_chat(load("gemma-2"), [ONE_TURN[0], ONE_TURN[0], ONE_TURN[1]])


@pytest.mark.parametrize("name", MODELS)
def test_a_text_is_trained_whole_but_for_its_bos(name: str, load: Callable[[str], ChatTokenizer]) -> None:
    tokenizer = load(name)
    stop = MODELS[name][2][0]
    [row] = encode(tokenizer, Example([], f"“To be” ~ Shakespeare {stop}", ""))
    assert trained(tokenizer, row)[0].strip() == f"“To be” ~ Shakespeare {stop}"
    assert row.ids.count(tokenizer.bos_id) == int(tokenizer.adds_bos)
    assert not tokenizer.stop_ids & set(row.ids)


@pytest.mark.parametrize("name", MODELS)
def test_control_tokens_of_a_rendered_text_are_tokens(
    name: str, load: Callable[[str], ChatTokenizer]
) -> None:
    """As the template renders a chat, so it can stand in a text: the ids are the same."""
    tokenizer = load(name)
    text = tokenizer.render(MANY_TURNS, False)
    [row] = encode(tokenizer, Example([], text, "", rendered=True))
    assert row.ids == encode_chat(tokenizer, MANY_TURNS)[0].ids
    assert row.mask == [int(at > 0 or i != tokenizer.bos_id) for at, i in enumerate(row.ids)]
    prompt = tokenizer.render(MANY_TURNS[:5], True)
    [row] = encode(tokenizer, Example([], text, "", prompt=prompt, rendered=True))
    assert trained(tokenizer, row)[0].strip().startswith("Yes.")
    assert tokenizer.stop_ids & {i for i, m in zip(row.ids, row.mask, strict=True) if m}


@pytest.mark.parametrize("assistant_only", [True, False])
def test_an_untrained_reply_is_context(assistant_only: bool, load: Callable[[str], ChatTokenizer]) -> None:
    tokenizer = load("phi-3.5")
    [row] = encode(tokenizer, Example(MANY_TURNS, "", "", frozenset((1, 5))), assistant_only)
    assert row.messages == MANY_TURNS[:4]
    assert row.untrained == 1
    told = "".join(trained(tokenizer, row))
    assert REPLIES[0] not in told
    assert REPLIES[0] in tokenizer.decode(row.ids)
    assert told.removesuffix("<|endoftext|>").endswith(f"{REPLIES[1]}<|end|>")
    assert ("A motto?" in told) != assistant_only


def test_all_but_the_bos_is_trained_without_assistant_only_loss(
    load: Callable[[str], ChatTokenizer],
) -> None:
    tokenizer = load("llama-2")
    [row] = encode(tokenizer, Example(ONE_TURN, "", ""), assistant_only=False)
    assert row.mask == [0] + [1] * (len(row.ids) - 1)


@pytest.mark.parametrize("name", MODELS)
def test_padding_ends_no_reply(name: str, load: Callable[[str], ChatTokenizer]) -> None:
    tokenizer = load(name)
    assert tokenizer.pad_id is not None
    assert tokenizer.pad_id not in tokenizer.stop_ids
