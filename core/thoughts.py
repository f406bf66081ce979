"""What a base's template does with the thoughts of a reply (`reasoning_content`).

Most templates of thinking models show the thought of the last reply and drop those of earlier ones (Qwen3).
Some show none and open one in the prompt for a reply (DeepSeek-R1's distillates): the model writes the
thought, its end and the answer after that prompt, so this is how a reply is put together here too, with an
empty thought where the data has none. Others close it in the prompt (Gemma 4): the answer follows at once.
"""

from __future__ import annotations

from core.errors import TemplateError
from core.marks import Marks, Render
from core.prompt import Messages
from core.reasoning import Reasoning

KEYS = ("reasoning_content", "reasoning", "thinking")  # what templates call a thought, one of them
_ASK, _REPLY, _THOUGHT = "zaskz", "zreplyz", "zthoughtz"


class Thoughts:
    """How one template, which `fill` fills, treats thoughts.

    `key` is what it calls one, None if it shows none. `opened` are the marks of a thought that the prompt
    for a reply opens and that the reply, as the template shows it, doesn't begin with. `cuts` says whether
    a thought at the beginning of a reply's text is dropped.
    """

    def __init__(self, fill: Render, template: str) -> None:
        self._fill = fill
        self._reasoning = Reasoning.of(fill, template)
        self.key = next((key for key in KEYS if self._shows(key)), None)
        self._opening = self._unshown_opening()
        self.opened: Marks | None = self._reasoning.opened() if self._opening else None
        self.cuts = self.key is None and not self._keeps(f"<think>\n{_THOUGHT}\n</think>\n\n{_REPLY}")

    @property
    def shown(self) -> bool:
        """Whether a thought has a place at all."""
        return bool(self.key or self.opened)

    def told_apart(self, message: dict[str, str]) -> dict[str, str]:
        """The reply with a thought that its text begins with under its own key, where it isn't mere text."""
        if not (self.shown or self.cuts) or message.get("reasoning_content"):
            return message
        found = self._reasoning.split(message["content"])
        if not found.thought or not found.answer or found.thinking:
            return message
        return message | {"content": found.answer, "reasoning_content": found.thought}

    def render(self, messages: Messages, add_generation_prompt: bool) -> str:
        """The text of a chat, as the model is given it or would have written it. Raises TemplateError."""
        named = [self._named(message) for message in messages]
        text = self._fill(named, add_generation_prompt)
        if add_generation_prompt or not self._opening or messages[-1]["role"] != "assistant":
            return text
        prompt = self._fill(named[:-1], True)
        begun = prompt.removesuffix(self._opening)
        if text.startswith(prompt) or not text.startswith(begun):
            return text
        thought = messages[-1].get("reasoning_content", "") + self.opened.bridge if self.opened else ""
        return prompt + thought + text[len(begun) :].lstrip("\n")

    def composes(self, messages: Messages) -> bool:
        """Whether `render` puts more in the chat's text than the template does."""
        named = [self._named(message) for message in messages]
        return bool(self._opening) and self.render(messages, False) != self._fill(named, False)

    def _named(self, message: dict[str, str]) -> dict[str, str]:
        thought = message.get("reasoning_content")
        if thought is None or self.key == "reasoning_content":
            return message
        plain = {key: value for key, value in message.items() if key != "reasoning_content"}
        return plain | {self.key: thought} if self.key else plain

    def _shows(self, key: str) -> bool:
        ask = {"role": "user", "content": _ASK}
        try:
            return _THOUGHT in self._fill(
                [ask, {"role": "assistant", "content": _REPLY, key: _THOUGHT}], False
            )
        except TemplateError:
            return False

    def _keeps(self, reply: str) -> bool:
        try:
            turns = [{"role": "user", "content": _ASK}, {"role": "assistant", "content": reply}]
            return _THOUGHT in self._fill(turns, False)
        except TemplateError:
            return True

    def _unshown_opening(self) -> str:
        """What the prompt for a reply ends with and a reply doesn't begin with."""
        ask = {"role": "user", "content": _ASK}
        try:
            prompt = self._fill([ask], True)
            before = self._fill([ask, {"role": "assistant", "content": _REPLY}], False).partition(_REPLY)[0]
        except TemplateError:
            return ""
        return prompt.removeprefix(before) if prompt.startswith(before) else ""
