"""Model files that look well and aren't: each costs a sentence, and the next model is served as ever."""

from __future__ import annotations

import random
import shutil
from contextlib import closing
from pathlib import Path

from chat.model_host import Host
from core.engine import Request, Sampling
from core.errors import ChatError
from core.registry import Entry, Registry, Source

CASES = 12
HEADER = 40_000  # bytes from the beginning: keys, and the first tokens


def test_whatever_passes_for_a_header_the_app_goes_on(short_model: Path, tmp_path: Path) -> None:
    """In a child, where llama.cpp may crash on them."""
    bad = tmp_path / "bad.gguf"
    shutil.copy(short_model, bad)
    whole = bad.read_bytes()[:HEADER]
    entries = {
        name: Entry(sources=[Source(path=str(path))], n_ctx=256)
        for name, path in (("bad", bad), ("good", short_model))
    }
    draw, reasons = random.Random(4), []
    with closing(Host(Registry(tmp_path / "models.json", entries), "llama-server")) as host:
        for _ in range(CASES):
            with bad.open("r+b") as file:
                file.write(whole)
                for _ in range(draw.randint(1, 6)):
                    file.seek(draw.randrange(24, HEADER))
                    file.write(bytes([draw.randrange(256)]))
            try:
                with host.use("bad"):
                    pass
            except ChatError as error:
                reasons.append(str(error))
        assert reasons
        assert all(reasons)
        with host.use("good") as model:
            ids = model.engine.tokenize("Once upon a time", False)
            text = "".join(
                c.text for c in model.engine.generate(Request(ids, Sampling(max_tokens=4, seed=1)))
            )
            assert text
