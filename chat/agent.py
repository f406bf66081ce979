"""The seam around llama-cpp-agent 0.2.35: one new LlamaCppAgent per turn, fed by our prompt and our engines.

The library is no longer maintained; nothing outside this file knows it. What the seam does about its known
defects (each has a test in tests/integration/test_agent_contract.py):
- formatters that differ from the model's template, shared between users: ours returns token ids instead;
- a history cut to its last 19 messages: ours is as long as the turn, cut to the context by `chat/context.py`;
- a system turn that is always inserted, with a line of tool documentation: the ids have none of it;
- providers that corrupt text, lose sampling settings and can't be stopped: ours drives `core/engine.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from llama_cpp_agent import LlamaCppAgent
from llama_cpp_agent.chat_history import BasicChatHistory
from llama_cpp_agent.chat_history.messages import Roles
from llama_cpp_agent.llm_output_settings import LlmStructuredOutputSettings, LlmStructuredOutputType
from llama_cpp_agent.messages_formatter import MessagesFormatter
from llama_cpp_agent.providers.provider_base import LlmProvider, LlmProviderId, LlmSamplingSettings

from core.engine import Engine, Generation, Request, Sampling, TokenLogProb

Messages = list[dict[str, str]]

# The agent drops chunks that equal its end token's text. No text contains a lone surrogate.
NEVER = "\ud800"


class IdsFormatter(MessagesFormatter):  # type: ignore[misc]  # the library has no types
    """Gives the conversation as the token ids of `core/prompt.py`; the agent hands them on untouched."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__("", {}, False, [], strip_prompt=False, bos_token="", eos_token=NEVER)
        self._ids = ids

    def format_conversation(
        self, messages: list[dict[str, Any]], response_role: Any = None
    ) -> tuple[Any, Roles]:
        return self._ids, Roles.assistant


@dataclass
class EngineSettings(LlmSamplingSettings):  # type: ignore[misc]
    """Carries a request through the agent, which copies it and asks whether to stream. Its ids and grammar go
    the agent's own ways."""

    request: Request

    def get_provider_identifier(self) -> LlmProviderId:
        return LlmProviderId.llama_cpp_python

    def get_additional_stop_sequences(self) -> None:
        return None  # replies end at end-of-generation ids, never at a string

    def add_additional_stop_sequences(self, sequences: list[str]) -> None:
        raise TypeError("replies end at ids; there are no stop strings")

    def is_streaming(self) -> bool:
        return True

    @staticmethod
    def load_from_dict(settings: dict[str, Any]) -> EngineSettings:
        return EngineSettings(Request((), Sampling(**settings)))

    def as_dict(self) -> dict[str, Any]:
        return self.request.sampling.model_dump()


class GrammarSettings(LlmStructuredOutputSettings):  # type: ignore[misc]
    """Carries a grammar through the agent. The library's own is wrong for half of the types that a schema
    has, and its parser prints what is no JSON: the reply stays text, checked by `chat/structured.py`."""

    grammar: str
    output_type: LlmStructuredOutputType = LlmStructuredOutputType.object_instance
    output_raw_json_string: bool = True

    def get_gbnf_grammar(self) -> str:
        return self.grammar


class EngineProvider(LlmProvider):  # type: ignore[misc]
    """Lets an agent draw its replies from one of our engines."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.generation: Generation | None = None
        # The agent passes text only.
        self.prompt_done = 0  # prompt tokens evaluated so far
        self.logprobs: list[TokenLogProb] = []  # of the text so far, where they are asked for

    def is_using_json_schema_constraints(self) -> bool:
        return False

    def get_provider_identifier(self) -> LlmProviderId:
        return LlmProviderId.llama_cpp_python

    def get_provider_default_settings(self) -> EngineSettings:
        return EngineSettings(Request((), Sampling()))

    def create_completion(
        self, prompt: list[int], structured_output_settings: Any, settings: EngineSettings, bos_token: str
    ) -> Iterator[dict[str, Any]]:
        given = isinstance(structured_output_settings, GrammarSettings)
        grammar = structured_output_settings.get_gbnf_grammar() if given else ""
        self.generation = self._engine.generate(replace(settings.request, ids=prompt, grammar=grammar))
        return self._chunks(self.generation)

    def _chunks(self, generation: Generation) -> Iterator[dict[str, Any]]:
        for chunk in generation:
            self.prompt_done = max(self.prompt_done, chunk.prompt_done)
            self.logprobs += chunk.logprobs
            yield {"choices": [{"text": chunk.text}]}

    def create_chat_completion(self, messages: Any, structured_output_settings: Any, settings: Any) -> Any:
        raise TypeError("prompts reach the engine as token ids")

    def tokenize(self, prompt: str) -> list[int]:
        return self._engine.tokenize(prompt, False)


def start_reply(provider: EngineProvider, messages: Messages, request: Request) -> Iterator[str]:
    """Start the reply to `messages`, which are `request.ids` as a prompt, and yield its text piece by piece.

    Empty pieces are signs of progress: `provider.prompt_done` has grown.
    """
    has_system = messages[0]["role"] == "system"
    history = BasicChatHistory(k=len(messages) + 2)  # all of it
    agent = LlamaCppAgent(
        provider,
        system_prompt=messages[0]["content"] if has_system else "",
        custom_messages_formatter=IdsFormatter(list(request.ids)),
        chat_history=history,
        add_tools_and_structures_documentation_to_system_prompt=False,
    )
    for message in messages[has_system:]:
        history.add_message({"role": Roles(message["role"]), "content": message["content"]})
    reply: Iterator[str] = agent.get_chat_response(
        llm_sampling_settings=EngineSettings(replace(request, ids=())),
        structured_output_settings=GrammarSettings(grammar=request.grammar) if request.grammar else None,
        returns_streaming_generator=True,
        add_response_to_chat_history=False,
    )
    return reply
