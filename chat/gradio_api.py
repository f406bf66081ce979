"""`/chat` for Gradio's own clients: one message answered, with the history that they send."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from chat.conversation import ask, read_chat
from chat.gradio_import import api, gr
from chat.page_html import refusal
from chat.reply import Sessions
from core.errors import ChatError
from core.reasoning import Reasoning, Reply


def user_of(request: gr.Request) -> str:
    """Who asks, for the bound that each has in line: a name, else the address that the request came from."""
    return request.username or (request.client.host if request.client else "")


def add_api(sessions: Sessions) -> None:
    """Add `/chat` to the Blocks that is being built."""

    def chat(
        message: str,
        history: list[dict[str, Any]] | None = None,
        system_prompt: str = "",
        model: str = "",
        max_tokens: int = 2048,
        temperature: float = 0.7,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        repeat_penalty: float = 1.1,
        seed: int | None = None,
        thoughts: bool = False,
        request: gr.Request | None = None,
    ) -> Iterator[str]:
        """Answer `message` after `history` (role and content); yields the reply so far.

        `history` may begin with a system message, and may be all of a chat that the page saved as JSON: then
        its model and its settings count. A user message at its end belongs to `message`, which may then be
        empty. With `thoughts`, the model's thought comes first, between <think>
        and </think>.
        """
        sampling = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "repeat_penalty": repeat_penalty,
            "seed": seed,
        }
        try:
            given = {"model": model or sessions.host.default, "sampling": sampling}
            given["system_prompt"] = system_prompt
            saved: Any = history
            saved = saved if isinstance(saved, dict) else {"messages": saved or []}
            conversation = read_chat(given | saved)
            if not isinstance(message, str):
                raise ChatError(f"message is {message!r}, not a text.")
            ask(conversation, message)
            key = f"api-{request.session_hash if request else id(conversation)}"
            for _ in sessions.reply(key, conversation, user=user_of(request) if request else ""):
                last = conversation.messages[-1]
                reply = last.reply() if last.role == "assistant" else Reply("", "", False)
                yield Reasoning().text(reply) if thoughts else reply.answer
            if reply.thinking and not thoughts:
                raise ChatError(
                    "The reply was cut while the model was still thinking. Raise max_tokens, or ask for its "
                    "thoughts with thoughts=true."
                )
        except ValidationError as error:
            raise gr.Error(refusal(error), print_exception=False) from error
        except ChatError as error:
            raise gr.Error(str(error), print_exception=False) from error

    api(chat, api_name="chat", concurrency_limit=None)
