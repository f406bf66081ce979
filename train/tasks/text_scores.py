"""How near a reply is to a reference, by their words alone: ROUGE-L and chrF, each 0 to 1."""

from __future__ import annotations

from collections import Counter


def rouge_l(reply: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004), case and full stops aside."""
    one, other = ([word.strip(".,;:!?").lower() for word in text.split()] for text in (reply, reference))
    longest = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for at, there in enumerate(other, 1):
            kept = longest[at]
            longest[at] = before + 1 if word == there else max(longest[at], longest[at - 1])
            before = kept
    return 2 * longest[-1] / max(1, len(one) + len(other))


def chrf(reply: str, reference: str, order: int = 6, beta: float = 2.0) -> float:
    """F2 of character n-grams up to 6 without spaces (Popović 2015), of one sentence, 0 to 1."""
    one, other = ("".join(text.split()) for text in (reply, reference))
    precisions, recalls = [], []
    for n in range(1, order + 1):
        made, wanted = (
            Counter(text[at : at + n] for at in range(len(text) - n + 1)) for text in (one, other)
        )
        if not wanted or not made:
            continue
        shared = (made & wanted).total()
        precisions.append(shared / made.total())
        recalls.append(shared / wanted.total())
    if not precisions or not sum(precisions) + sum(recalls):
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
