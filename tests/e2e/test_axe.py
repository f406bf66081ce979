"""axe over the whole page, with all that a chat can show, in light and in dark colours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from chat.conversation import Message
from chat.tree import Chat, Compared, Tree
from tests.e2e.person import WAIT_MS, Person
from tests.e2e.serve import App
from tests.e2e.store import put_tree

pytestmark = pytest.mark.parametrize("app", ["in-process"], indirect=True)

# Gradio folds a thought by a button inside a button. The inner one has no name and does nothing of its own;
# chat/screen.js hides it from keys and screen readers. axe wants it gone, which only Gradio can do.
FOLD = "#talk .title[role=button]"
CODE = {
    "python": "@cached\nclass A(B):  # why\n    async def f(self, x: int = 3):\n        '''doc'''\n"
    "        return f'{x}' + None if x != 1.5e3 else True",
    "json": '{"key": [1, "two", null, true]}',
    "html": "<a href='x'>text &amp; more</a><!-- why -->",
    "bash": 'for f in *.txt; do echo "$f" | grep -v x; done # why',
    "css": "a:hover { color: #fff; margin: 0 !important }",
    "javascript": "const a = /x+/g.test(`${b}`); // why",
    "sql": "SELECT a FROM b WHERE c = 'd' -- why",
    "diff": "- old\n+ new",
}
RICH = (
    "**bold**, `code`, [a link](https://example.com)\n\n> Said.\n\n| a | b |\n|-|-|\n| 1 | 2 |\n\n$$x$$\n\n"
)
RICH += "\n\n".join(f"```{language}\n{code}\n```" for language, code in CODE.items())


def said(role: str, content: str) -> Message:
    return Message.model_validate({"role": role, "content": content})


@pytest.fixture(params=["light", "dark"])
def person(request: pytest.FixtureRequest, browser: Browser, app: App) -> Iterator[Person]:
    context = browser.new_context(viewport={"width": 1600, "height": 900}, color_scheme=request.param)
    yield Person(context.new_page(), app.url)
    context.close()


def check(person: Person) -> None:
    found = Axe().run(person.page, context={"exclude": [[FOLD]]}).response["violations"]
    bad = [each for each in found if each["impact"] in ("serious", "critical")]
    assert not bad, [(each["id"], [node["html"] for node in each["nodes"]]) for each in bad]


def test_axe_finds_nothing_serious(person: Person) -> None:
    check(person)
    tree = Tree(Chat(title="Rich", model="Small"))
    question = tree.add(said("user", "Think about `x`."))
    tree.add(said("assistant", f"<think>Hidden at first.</think>{RICH}"))
    tree.add(said("assistant", "A second version."), question.id, vote=1)
    tree.chat.leaf = [*tree.nodes][1]
    put_tree(person, tree)
    expect(person.page.locator("#chat pre")).to_have_count(len(CODE), timeout=WAIT_MS)
    person.page.locator("#chat").get_by_text("Thought").click()
    for part in ("Compare two replies", "Structured replies", "Save and open"):
        person.unfold(part)
    person.page.wait_for_timeout(1000)  # until the folds have opened
    check(person)
    person.begin("")  # what is refused is told
    expect(person.status.get_by_role("alert")).to_be_visible(timeout=WAIT_MS)
    check(person)


def test_axe_finds_nothing_serious_where_replies_wait_for_a_vote_or_are_a_tree(person: Person) -> None:
    tree = Tree(Chat(title="Compared", model="Small"))
    question = tree.add(said("user", "Which one?"))
    left = tree.add(said("assistant", RICH), model="Small")
    right = tree.add(said("assistant", "Short."), question.id, model="Tiny")
    tree.chat.compared = Compared(nodes=(left.id, right.id))
    put_tree(person, tree)
    expect(person.button("Right is better")).to_be_visible(timeout=WAIT_MS)
    check(person)
    held = Tree(Chat(title="Held", model="Small", json_schema={"type": "object"}))
    held.add(said("user", "As JSON."))
    held.add(said("assistant", '{"a": [1, "x", null, {"b": true}]}'))
    put_tree(person, held)
    expect(person.page.locator("#chat .json")).to_be_visible(timeout=WAIT_MS)
    check(person)
