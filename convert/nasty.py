"""Texts on which two tokenizers that claim to be the same have been seen to differ."""

from __future__ import annotations

# Surfaces of control tokens of every family that the project converts, as somebody might type them.
_SURFACES = (
    "<s></s><unk> </s> text<s>",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "<|user|>\nHi<|end|>\n<|assistant|>\n\n two newlines",
    "<start_of_turn>user\nHi<end_of_turn>\n<bos><eos><pad>",
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nHi<|eot_id|>",
    "[INST] Hi [/INST] <<SYS>> <|im_ <|end <end_of_turn",
    "<0x0A><0x41>\u2581\u2581",
)

NASTY: tuple[str, ...] = (
    "",
    " ",
    "\n",
    "\t",
    " leading",
    "   three leading, two trailing  ",
    "\n\n\n three newlines \n \n",
    "a\r\nb\r\n\r\nc\rd",
    "tab\tand\t\ttabs\n\tindented",
    " " * 33 + "x" + " " * 400,
    "\n" * 40 + "\t" * 40,
    "Hello, world! It's we've I'LL DON'T 'tis he'd",
    "3 33 333 3333 33333 1,024.50 ٣٤٥ ½ Ⅷ ² 1e-9 0x1F",
    "def f(x: int) -> str:\n    return f'{x!r:>{10}}'  # comment\n\n\nclass A:\n\tpass\n",
    'for(int i=0;i<n;++i){a[i]+=b[i]*c[i];}//}}}\n#include <stdio.h>\n<div class="x">&nbsp;</div>',
    "......!!!!!!??????-----=====~~~~~#####$$$%%%^^^&&&***((()))[[[]]]{{{}}}",
    "https://example.org/a_b?c=%20d&e=f#g user.name+tag@example.co.uk",
    "🚀 😶\u200d🌫️ 👩\u200d👩\u200d👧\u200d👦 🇩🇪🇯🇵 👍🏽 ✅🦙🦙",
    "e\u0301 é a\u0308\u0323 Z\u0351\u036b\u0343a\u030a\u0327lgo \u0301alone",
    "Ünïcödé Straße ẞ İstanbul \u017f ﬁ ﬀ Ǆ ﷺ",
    "我想在apple工作1314151天\uff5e 日本語テスト。カタカナ 한국어 띄어쓰기 𠮷野家",
    "нещо на Български Ελληνικά កាន់តែពិសេសអាច नमस्ते ไทย",
    "שלום עולם العربية \u202bRTL\u202c \u200fmark ١٢٣",
    "zero\u200bwidth\u200cnon\u200djoiner\ufeffbom\u2060word\u00adsoft",
    "no-break\u00a0space\u2003em\u3000ideographic\u2028line\u2029paragraph\u0085next\u1680ogham",
    "\ue000\uf8ff\U000f0000\U00100000\U0010fffd private",
    "\x01\x02\x1b[31mred\x7f\x80\x9f\ufffd\ufffe",
    "\u2581literal\u2581\u2581 \u2581 lower one eighth block",
    "ab" * 4096,
    "".join(chr(97 + i * i % 26) for i in range(8192)),
    "日" * 2731,
    "=" * 8192,
    *_SURFACES,
)
