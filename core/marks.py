"""Which marks a model puts around its thoughts: read off its own template, and recognised by their shape.

A template that takes `reasoning_content` (or `reasoning`, `thinking`) shows its marks when a chat with a
thought is rendered; llama.cpp's common/chat-diff-analyzer.cpp does it so too. Others only mention them
(DeepSeek-R1's cuts at `</think>`, Gemma 4's at `<channel|>`): those are told by name and shape, as are marks
of replies whose template knows of none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from core.errors import TemplateError
from core.template import REASONING_KEYS, Messages

Render = Callable[[Messages, bool], str]

ASK, THOUGHT, ANSWER = "zaskz", "zthoughtz", "zanswerz"  # texts that no template holds

TAG = re.compile(r"<[^<>\s]{1,40}>|\[[^\[\]\n]{1,40}\]")
_NAMES = r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|inner)"
_OPENS = re.compile(
    rf"[<\[]\|?(?:\w+:)?(?:start_|begin_of_|begin_)?{_NAMES}(?:_start|_begin|_prefix)?(?::\w+)?\|?[>\]]", re.I
)
_TURNED = (("START", "END"), ("begin", "end"), ("start", "end"), ("prefix", "suffix"))
_CHANNEL = re.compile(rf"(<\|(\w+)>{_NAMES})\b")  # Gemma 4: <|channel>thought ... <channel|>
# The answer's own marks, beside those of the thought: <response>, <|begin_of_solution|>
_ANSWERS = re.compile(r"[<\[]\|?(?:start_|begin_of_)?(?:response|answer|solution)\|?[>\]]", re.I)
# Sentences that Granite 3.2 was trained to write.
_SENTENCES = ("Here is my thought process:", "Here is my response:")


@dataclass(frozen=True)
class Marks:
    """What stands around one kind of thought. `lead` and `bridge` have the template's own whitespace."""

    lead: str  # before the thought
    bridge: str  # between the thought and the answer
    gap: str = ""  # the part of the bridge that the prompt for a reply ends with: `direct` follows it
    closer: str = ""  # after the answer

    @property
    def start(self) -> str:
        return self.lead.strip()

    @property
    def end(self) -> str:
        """The first mark of the bridge, or all of it."""
        found = TAG.search(self.bridge)
        return found[0] if found else self.bridge.strip()

    @property
    def opener(self) -> str:
        """What may stand between the end of a thought and the answer."""
        return self.bridge.partition(self.end)[2].strip()

    @property
    def direct(self) -> str:
        """What an answer without a thought begins with."""
        return self.opener.removeprefix(self.gap).strip()

    @property
    def frame(self) -> tuple[str, str] | None:
        """What stands around a segment's name, where thought and answer are segments that differ by name.

        gpt-oss has `<|channel|>analysis<|message|>` and `<|channel|>final<|message|>`.
        """
        before = _shared(self.start, self.direct)
        after = _shared(self.start[::-1], self.direct[::-1])[::-1]
        segments = TAG.match(self.gap) and self.start != self.direct and not TAG.fullmatch(self.start)
        return (before, after) if segments and before and TAG.search(after) else None


def _shared(one: str, other: str) -> str:
    """Return the beginning that two texts have in common."""
    same = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        same += 1
    return one[:same]


def generation_prompt(render: Render, system: str = "") -> str:
    """Return what the template puts after the last question for the reply to follow. Raises TemplateError."""
    chat = [{"role": "system", "content": system}] if system.strip() else []
    return render([*chat, {"role": "user", "content": ASK}], True).rpartition(ASK)[2]


def find_marks(render: Render, template: str) -> tuple[Marks, ...]:
    """Find the marks of the model's thoughts, the likeliest first; none where nothing is known."""
    try:
        prompt = generation_prompt(render)
    except TemplateError:
        return ()  # no turn will get past this
    shown = (marks for key in REASONING_KEYS if (marks := _shown(render, key, prompt)))
    found = next(shown, None)
    return (found,) if found else tuple(dict.fromkeys(_mentioned(template)))


def _shown(render: Render, key: str, prompt: str) -> Marks | None:
    """Render a thought under `key` and look at what is around it."""
    ask = {"role": "user", "content": ASK}
    try:
        text = render([ask, {"role": "assistant", "content": ANSWER, key: THOUGHT}], False)
    except TemplateError:
        return None
    before, thought, after = text.rpartition(ASK)[2].partition(THOUGHT)
    bridge, answer, closer = after.partition(ANSWER)
    if not thought or not answer or not bridge.strip():
        return None
    opener = Marks("", bridge).opener
    gap = next((opener[:n] for n in range(len(opener), 0, -1) if prompt.endswith(opener[:n])), "")
    return Marks(_lead(before, prompt, bridge), bridge, gap, closer.strip())


def _lead(before: str, prompt: str, bridge: str) -> str:
    """The end of `before`, what a template puts before a thought, that is the thought's own mark."""
    if before.startswith(prompt) and before[len(prompt) :].strip():
        return before[len(prompt) :]
    more = prompt.removeprefix(before)
    if before.strip() and more != prompt and more.strip() and Marks("", bridge).end not in more:
        return more  # a sentence that only the prompt has: Apriel's "Here are my reasoning steps:"
    tags = list(TAG.finditer(before))[-3:]
    named = [tag.start() for tag in tags if re.search(_NAMES, before[tag.start() :], re.I)]
    return before[named[-1] :] if named else before[tags[-1].start() :] if tags else ""


def _mentioned(template: str) -> Iterator[Marks]:
    """Yield the marks that the template's text holds, in the order of their appearance."""
    tags = dict.fromkeys(TAG.findall(template))
    wraps = [tag for tag in tags if _ANSWERS.fullmatch(tag) and any(turned in tags for turned in turns(tag))]
    wrap, closer = (wraps[0], next(t for t in turns(wraps[0]) if t in tags)) if wraps else ("", "")
    for tag in tags:
        for end in turns(tag) if _OPENS.fullmatch(tag) else ():
            if end in tags:
                yield _spaced(tag, end, wrap, closer)
    for start, name in dict.fromkeys(_CHANNEL.findall(template)):
        yield Marks(f"{start}\n", f"\n<{name}|>")
    if all(sentence in template for sentence in _SENTENCES):
        yield Marks(f"{_SENTENCES[0]}\n", f"\n{_SENTENCES[1]}\n")
    if not any(_OPENS.fullmatch(tag) for tag in tags):  # a template that only cuts at the end of a thought
        for tag in tags:
            if tag.startswith("</") and _OPENS.fullmatch(f"<{tag[2:]}"):
                yield _spaced(f"<{tag[2:]}", tag)


def turns(mark: str) -> Iterator[str]:
    """Yield the marks that could end what `mark` begins, the likeliest first."""
    for opens, closes in _TURNED:
        if opens in mark:
            yield mark.replace(opens, closes)
    yield f"{mark[0]}/{mark[1:]}"  # </think>, [/THINK]
    if mark.startswith("<|"):
        yield f"<|/{mark[2:]}"


def opened_by(text: str) -> Marks | None:
    """Return the marks of a reply that begins with one which no template told of."""
    tag = TAG.match(text)
    if tag is None or not _OPENS.fullmatch(tag[0]):
        channel = _CHANNEL.match(text)
        return Marks(f"{channel[1]}\n", f"\n<{channel[2]}|>") if channel else None
    return _spaced(tag[0], next(turns(tag[0])))


def _spaced(start: str, end: str, wrap: str = "", closer: str = "") -> Marks:
    """Give marks the line breaks that models write around those of the kind of `<think>`, and no others."""
    if start[1].isalpha() and start[0] == "<":
        return Marks(f"{start}\n", f"\n{end}\n\n{wrap}", closer=closer)
    return Marks(start, f"{end}{wrap}", closer=closer)
