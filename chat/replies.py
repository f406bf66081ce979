"""The ids with which replies were generated: their text, tokenised again, may give others."""

from __future__ import annotations

import threading
from collections import OrderedDict

MAX_TOKENS = 1_000_000  # of all replies together; the oldest are forgotten


class Replies(OrderedDict[str, list[int]]):
    """Ids by the reply's text. Lives in the app: no ids come back from a browser."""

    def __init__(self) -> None:
        super().__init__()
        self._tokens = 0
        self._lock = threading.Lock()

    def remember(self, text: str, ids: list[int]) -> None:
        """Keep `ids` as those of `text`, unless some of them are not known (-1)."""
        if not text or -1 in ids:
            return
        with self._lock:
            self._tokens += len(ids) - len(self.pop(text, []))
            self[text] = ids
            while self._tokens > MAX_TOKENS:
                self._tokens -= len(self.popitem(last=False)[1])
