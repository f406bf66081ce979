"""What is sent to the hub: names that it takes, and cards that are known again."""

from __future__ import annotations

import pytest
from huggingface_hub import RepoCard
from huggingface_hub.utils import validate_repo_id

from publish.contents import MARK, _tagged, slug


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("run-Q5_K_M", "run-Q5_K_M"),
        ("my quotes, Q4_1", "my-quotes-Q4_1"),
        ("--a..b--", "a.b"),
        ("émile/été", "mile-t"),
        ("日本語", "model"),
        ("x" * 200, "x" * 90),
    ],
)
def test_any_name_becomes_one_that_the_hub_takes(name: str, expected: str) -> None:
    assert slug(name) == expected
    validate_repo_id(f"me/{slug(name)}")


@pytest.mark.parametrize(
    "card",
    [
        "# no front matter\n",
        "---\nlibrary_name: gguf\n---\n\n# a model\n",
        "---\ntags: [mine]\nbase_model: a/b\n---\n# a model\n",
        "---\ntags:\n- mine\n- gguf\n---\n# a model\n",
    ],
)
def test_a_card_keeps_its_front_matter_and_gets_the_tag_once(card: str) -> None:
    before, after = RepoCard(card), RepoCard(_tagged(_tagged(card)))
    tags = after.data.get("tags")
    assert tags.count(MARK) == 1
    assert set(tags) == {*(before.data.get("tags") or []), "gguf", MARK}
    assert after.text.strip() == before.text.strip()
    rest = before.data.to_dict() | {"tags": tags}
    assert after.data.to_dict() == rest
