"""The chat for programs: one Gradio endpoint, `/chat`, with the same sessions and limits as the page."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError

from chat.conversation import Conversation
from chat.screen_gradio import api, gr
from chat.screen_parts import refusal
from chat.session import Sessions
from core.errors import ChatError

TURNS = "turns"  # page and API share one limit in Gradio; how many reach the model is the engine's affair
CONCURRENT_TURNS = 16


def add_api(sessions: Sessions) -> None:
    """Add `/chat` to the Blocks that is being built."""

    def chat(
        message: str,
        history: list[dict[str, str]] | None = None,
        system_prompt: str = "",
        model: str = "",
        max_tokens: int = 2048,
        temperature: float = 0.7,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        repeat_penalty: float = 1.1,
        seed: int | None = None,
        request: gr.Request | None = None,
    ) -> Iterator[str]:
        """Answer `message` after `history` (role and content); yields the reply so far."""
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
            conversation = Conversation.model_validate(
                {
                    "model": model or sessions.host.default,
                    "system_prompt": system_prompt,
                    "messages": history or [],
                    "sampling": sampling,
                }
            )
            if not isinstance(message, str):
                raise ChatError(f"message is {message!r}, not a text.")
            conversation.say(message)
            key = f"api-{request.session_hash if request else id(conversation)}"
            for progress in sessions.reply(key, conversation):
                yield progress.text
        except ValidationError as error:
            raise gr.Error(refusal(error), print_exception=False) from error
        except ChatError as error:
            raise gr.Error(str(error), print_exception=False) from error

    api(chat, api_name="chat", concurrency_id=TURNS, concurrency_limit=CONCURRENT_TURNS)
