"""What a language model's tokens cost: a dated table by model id, which the operator's own settings may extend.

Dollars per million tokens. A write to the cache costs 1.25 times the input (5 minutes) or twice it (an hour); a read
has a price of its own, and where it is not published, the input's stands for it: never less than what is charged.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from orchestrator.errors import InputError
from orchestrator.records import Record

PRICES_OF = "2026-11"
WRITE_5M, WRITE_1H = 1.25, 2.0
BYTES_PER_TOKEN = 2  # fewer than any text we send has, so that a maximum is one


class Usage(Record):
    """Tokens of one call, each kind with a price of its own. `input_tokens` are those that no cache took part in."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0

    @property
    def prompt(self) -> int:
        return self.input_tokens + self.cache_read + self.cache_write_5m + self.cache_write_1h

    @property
    def total(self) -> int:
        return self.prompt + self.output_tokens


class Price(Record):
    """One model's prices. Above `up_to` tokens of prompt, `beyond` holds for all of the call."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cache_read: float | None = Field(default=None, ge=0)
    up_to: int | None = None
    beyond: Price | None = None

    def at(self, prompt_tokens: int) -> Price:
        over = self.up_to is not None and prompt_tokens > self.up_to
        return self.beyond if over and self.beyond else self

    def usd(self, usage: Usage) -> float:
        """Each kind of token at its own price."""
        here = self.at(usage.prompt)
        read = here.input if here.cache_read is None else here.cache_read
        written = usage.cache_write_5m * WRITE_5M + usage.cache_write_1h * WRITE_1H
        prompt = (usage.input_tokens + written) * here.input + usage.cache_read * read
        return (prompt + usage.output_tokens * here.output) / 1e6


PRICES: Mapping[str, Price] = {
    "claude-opus-5-5": Price(input=4.0, output=20.0),
    "claude-sonnet-5-5": Price(input=2.0, output=10.0, cache_read=0.10),
    "claude-haiku-5-5": Price(
        input=0.10, output=0.50, cache_read=0.01, up_to=100_000,
        beyond=Price(input=0.50, output=2.50, cache_read=0.05),
    ),
}  # fmt: skip


def price_of(model: str, own: Mapping[str, Price]) -> Price:
    """Raises InputError for a model whose price nobody gave: an unknown price can't be held in a budget."""
    found = own.get(model) or PRICES.get(model)
    if found is None:
        fix = f'say what it costs in your own config.toml: [prices."{model}"] input = 0, output = 0'
        raise InputError(f"the price of model `{model}` is not known; {fix}")
    return found


def most_tokens(prompt: str) -> int:
    """More tokens than the prompt has, counted by its bytes."""
    return len(prompt.encode()) // BYTES_PER_TOKEN


def most_usd(price: Price, prompt_tokens: int, output_tokens: int) -> float:
    """More than a call can cost: all of its prompt written to the cache, all of its answer used."""
    return price.usd(Usage(cache_write_5m=prompt_tokens, output_tokens=output_tokens))
