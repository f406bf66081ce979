"""What decides about a chat's next reply: settings that a turn has, and that are kept with the chat."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from chat.schema_reading import depth_of
from core.engine import Sampling

MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH = 64 * 1024, 100  # kept; what replies can be held to is less


def _whole_characters(text: str) -> str:
    """Replace halves of a character, which JSON can carry and UTF-8 can't."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _bounded(schema: dict[str, Any]) -> dict[str, Any]:
    """Refuse what can't be written as JSON again, or only by the megabyte."""
    if depth_of(schema) > MAX_SCHEMA_DEPTH:
        raise ValueError("the JSON schema is nested too deep")
    try:
        size = len(json.dumps(schema, ensure_ascii=False, allow_nan=False).encode())
    except UnicodeEncodeError:
        raise ValueError("the JSON schema has half a character") from None
    if size > MAX_SCHEMA_BYTES:
        raise ValueError(f"the JSON schema has {size:,} bytes; {MAX_SCHEMA_BYTES:,} are kept")
    return schema


Text = Annotated[str, AfterValidator(_whole_characters)]
Name = Annotated[Text, Field(max_length=500)]  # of a model or an adapter
Finite = Annotated[float, Field(allow_inf_nan=False)]
Strengths = Annotated[dict[Name, Finite], Field(max_length=100)]  # of adapters
Count = Annotated[int, Field(ge=0, lt=2**53)]  # as large as a browser can count
Schema = Annotated[dict[str, Any], AfterValidator(_bounded)]


class ChatSettings(BaseModel):
    """Comes back from where others can write, so values that can't be are refused, also when one is set."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    model: Name = ""
    system_prompt: Text = ""
    sampling: Sampling = Sampling()
    adapters: Strengths = Field(default_factory=dict)  # strength by name; without any the model's own
    json_schema: Schema | None = None  # what replies have to be, where they are to be JSON
    left_out: Count = 0  # messages at the start that no longer fit the context
    tokens: Count = 0  # of context that the last turn used

    def settings(self) -> dict[str, Any]:
        """These fields by name, without those of a subclass."""
        return {name: getattr(self, name) for name in ChatSettings.model_fields}

    def use_model(self, name: str) -> None:
        """Go on with the model called `name`, whose context may hold what the one before had to leave out."""
        if name != self.model:
            self.model, self.left_out, self.tokens = name, 0, 0
            self.adapters = {}  # they are of one base
