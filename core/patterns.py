"""PEFT's expressions for the names of modules, as in `rank_pattern` and `alpha_pattern`.

Training and conversion refuse the same ones, and training must know them before torch is imported.
"""

from __future__ import annotations

import re


def complicated(pattern: str) -> bool:
    """Whether an expression could run for years; it may come from a file that anyone has written."""
    return bool(re.search(r"\)[*+?{]", pattern)) or len(re.findall(r"[*+{]", pattern)) > 2


def is_match(pattern: str, module: str) -> bool:
    """Whether it means the module `module`, by the rule of PEFT's get_pattern_key. Raises re.error."""
    return bool(re.match(rf"(.*\.)?({pattern})$", module))
