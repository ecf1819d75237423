"""A real model through mlx-lm's own generation: the patch changes no letter of its text."""

from __future__ import annotations

import mlx_sdpa_ext
import pytest
import smollm2
from mlx_lm.generate import stream_generate

QUESTIONS = (
    "What is the capital of France, and what is it known for?",
    "Write a short poem about the sea.",
)
LAYERS = 30


@pytest.fixture(scope="module")
def smollm(pytestconfig):
    return smollm2.load(smollm2.find(pytestconfig.cache.mkdir("smollm2")))


def answer(smollm, question: str, **options) -> tuple[str, int]:
    """The greedy answer, and the number of its tokens."""
    model, tokenizer = smollm
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True
    )
    parts = list(stream_generate(model, tokenizer, prompt, **options))
    return "".join(part.text for part in parts), parts[-1].generation_tokens


def check(smollm, question: str, **options) -> None:
    stock, tokens = answer(smollm, question, **options)
    with mlx_sdpa_ext.patched():
        ours, _ = answer(smollm, question, **options)
        stats = mlx_sdpa_ext.stats()
    assert ours == stock
    # All of the prompt but its last token; that token; then one pass ahead of each token read.
    assert stats.calls == LAYERS * (1 + 1 + tokens)
    assert stats.providers == {"ext": stats.calls}
    assert stats.fallbacks == 0


@pytest.mark.parametrize("question", QUESTIONS)
def test_same_text(smollm, question):
    check(smollm, question, max_tokens=40)


def test_it_knows_the_capital_of_france(smollm):
    """The weights and the tokenizer are loaded right, so that the text means something."""
    with mlx_sdpa_ext.patched():
        text, _ = answer(smollm, QUESTIONS[0], max_tokens=8)
    assert "Paris" in text


def test_same_text_from_a_quantized_cache(smollm):
    check(smollm, QUESTIONS[0], max_tokens=16, kv_bits=8, quantized_kv_start=0)
