"""Candidate targets in a paper's text: numbers with a unit or a metric beside them, in sentences and in tables.

A program's guesses, ranked so that a person reads the likely ones first; the sentence or row is quoted with its page.
Every pattern is linear in the text and every list is bounded: the text may be made to be slow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from orchestrator.papers.pages import Page, Paper, clean
from orchestrator.records import Candidate

MAX_SENTENCE = 600
MAX_OF_A_PAGE = 200
NEAR, NEARER = 160, 40  # characters between a metric's words and a number with a unit, and one without
MAX_CANDIDATES = 400
NUMBER = re.compile(r"(?<![\w.,\[(/-])(\d{1,6}(?:\.\d{1,6})?)(?![\w\]/]|[.,]\d)\s?(%|percent\b|per cent\b)?")
# A number after one of these is a place, a count of something else, or a citation.
NO_CLAIM_BEFORE = re.compile(
    r"(?:\b(?:fig|figs|figure|figures|tab|table|tables|sec|section|sections|eq|equation|chapter|page|pages|pp|p|no|"
    r"version|step|appendix|algorithm|layer|epoch|epochs|et al|seed)\.?\s*|[\[(,]\s*)$",
    re.IGNORECASE,
)
NO_CLAIM_AFTER = re.compile(
    r"^\s*(?:x|×|[-–]?(?:by|layers?|epochs?|hours?|days?|minutes?|seconds?|images?|units?|nodes?|weights|parameters|"
    r"classes|categories|pixels?|bits?|GPUs?|GB|MB|million|billion|times|examples?|samples?|iterations?))\b",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z(\[])")
ABBREVIATION = re.compile(r"(?:\b(?:Fig|Figs|Tab|Sec|Eq|al|e\.g|i\.e|vs|cf|ca|resp|No|Dr|approx|pp)|\b[A-Z])\.$")
CAPTION = re.compile(r"^\s*(table|tab\.)\s+([IVXLC]{1,6}|\d{1,3})\b", re.IGNORECASE)
METRICS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern, re.IGNORECASE))
    for name, pattern in (
        ("top-5 error", r"top-?\s?5 (?:test |validation )?error(?: rates?)?"),
        ("top-1 error", r"top-?\s?1 (?:test |validation )?error(?: rates?)?"),
        ("test error", r"(?:test|generali[sz]ation) (?:set )?errors?(?: rates?)?"),
        ("validation error", r"validation (?:set )?errors?(?: rates?)?"),
        ("training error", r"training (?:set )?errors?(?: rates?)?"),
        ("error rate", r"(?:mis)?classification errors?|error rates?|misclassified|errors?\b"),
        ("top-5 accuracy", r"top-?\s?5 accurac(?:y|ies)"),
        ("top-1 accuracy", r"top-?\s?1 accurac(?:y|ies)"),
        ("accuracy", r"accurac(?:y|ies)|correctly classified|recognition rates?"),
        ("F1", r"\bF1(?:[ -]scores?)?\b"),
        ("mean average precision", r"\bmAP\b|mean average precision"),
        ("IoU", r"\bm?IoU\b"),
        ("BLEU", r"\bBLEU\b"),
        ("perplexity", r"perplexit(?:y|ies)"),
        ("word error rate", r"\bWER\b"),
        ("log-likelihood", r"log[- ]likelihoods?|bits? per (?:dimension|character)"),
    )
)
DATASETS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern, re.IGNORECASE))
    for name, pattern in (
        ("fashion-mnist", r"fashion[- ]?mnist"),
        ("mnist", r"(?<!fashion-)(?<!fashion )\bmnist\b"),
        ("cifar-100", r"\bcifar[- ]?100\b"),
        ("cifar-10", r"\bcifar[- ]?10\b"),
        ("ilsvrc-2010", r"\b(?:ilsvrc|imagenet)[- ]?2010\b"),
        ("ilsvrc-2012", r"\b(?:ilsvrc|imagenet)[- ]?2012\b"),
        ("imagenet", r"\bimagenet\b"),
        ("svhn", r"\bsvhn\b|street view house numbers"),
        ("coco", r"\b(?:ms[- ]?)?coco\b"),
        ("pascal-voc", r"pascal voc"),
        ("penn-treebank", r"penn treebank|\bptb\b"),
        ("wikitext", r"\bwikitext[- ]?\d*\b"),
        ("librispeech", r"\blibrispeech\b"),
        ("timit", r"\btimit\b"),
    )
)
RESULT = re.compile(
    r"\b(?:achiev|obtain|reach|report|yield|result|attain|reduc|improv|outperform|state[- ]of)", re.IGNORECASE
)


@dataclass(frozen=True)
class Found:
    """A candidate before it has an id; `score` ranks it."""

    score: int
    value: float
    unit: str
    metric: str
    dataset: str
    page: int
    place: str
    quote: str


def candidates(paper: Paper, at_most: int = MAX_CANDIDATES) -> tuple[Candidate, ...]:
    """The likeliest first. The same number in the same sentence or row is one candidate."""
    found = [each for page in paper.pages for each in of_page(page)]
    found.sort(key=lambda each: (-each.score, each.page))
    return _named(_once(found), at_most)


def of_page(page: Page) -> list[Found]:
    known = _dataset(" ".join(page.lines), "")
    in_tables = list(_tables(page, known))
    quoted = {each.quote for each in in_tables}
    prose = [line for line in page.lines if line.replace("\t", "  ")[:MAX_SENTENCE] not in quoted]
    in_sentences = _sentences(Page(page.number, tuple(prose)), known)
    return [*in_tables, *in_sentences][:MAX_OF_A_PAGE]


def value_in(quote: str, value: float) -> bool:
    """Whether a number stands in a text as it is, whatever its trailing zeros."""
    return any(float(match[1]) == value for match in re.finditer(r"(?<![\w.])(\d{1,9}(?:\.\d{1,9})?)", quote))


# Sentences


def sentences(text: str) -> Iterator[str]:
    """Cut at full stops, but not at those of `Fig. 9` or `et al. 1998`; overlong ones are cut off."""
    held = ""
    for part in SENTENCE_END.split(text):
        held = f"{held} {part}" if held else part
        if ABBREVIATION.search(held[-8:]) and len(held) < MAX_SENTENCE:
            continue
        yield held[:MAX_SENTENCE]
        held = ""
    if held:
        yield held[:MAX_SENTENCE]


def _sentences(page: Page, known: str) -> Iterator[Found]:
    for sentence in sentences(page.text):
        metrics = [(name, match) for name, pattern in METRICS for match in pattern.finditer(sentence)]
        for match in NUMBER.finditer(sentence):
            if not _may_be_claim(sentence, match):
                continue
            metric = _nearest(metrics, match, NEAR if match[2] else NEARER)
            if not (metric or match[2]):
                continue
            dataset = _dataset(sentence, "", match.start())
            score = 3 * bool(match[2]) + 3 * bool(metric) + 2 * bool(dataset) + bool(RESULT.search(sentence))
            score += (page.number == 1) - 3 * metric.startswith("training")
            unit = "%" if match[2] else ""
            yield Found(score, float(match[1]), unit, metric, dataset or known, page.number, "", clean(sentence))


def _may_be_claim(sentence: str, match: re.Match[str]) -> bool:
    """A number that has a unit, or a decimal point; not a year, a citation, a place or a count."""
    if not match[2] and "." not in match[1]:
        return False
    before, after = sentence[max(0, match.start() - 24) : match.start()], sentence[match.end() : match.end() + 24]
    return not (NO_CLAIM_BEFORE.search(before) and not match[2]) and not NO_CLAIM_AFTER.match(after)


def _nearest(metrics: list[tuple[str, re.Match[str]]], number: re.Match[str], at_most: int) -> str:
    def distance(match: re.Match[str]) -> int:
        return max(number.start() - match.end(), match.start() - number.end(), 0)

    near = [(distance(match), -len(match[0]), name) for name, match in metrics]
    return min((each for each in near if each[0] <= at_most), default=(0, 0, ""))[2]


def _dataset(text: str, otherwise: str, at: int = 0) -> str:
    found = [(abs(match.start() - at), name) for name, pattern in DATASETS for match in pattern.finditer(text)]
    return min(found, default=(0, otherwise))[1]


# Tables


def _tables(page: Page, known: str) -> Iterator[Found]:
    """Runs of lines with several cells and numbers in them, under their caption and their row of heads."""
    caption, heads = "", list[str]()
    for index, line in enumerate(page.lines):
        cells = [cell.strip() for cell in line.split("\t")]
        if CAPTION.match(line):
            caption, heads = " ".join(page.lines[index : index + 2])[:MAX_SENTENCE], []
        elif len(cells) < 2:
            heads = []
        elif not any(_cell(cell) for cell in cells[1:]):
            heads = cells
        else:
            yield from _row(page.number, caption, heads, cells, known)


def _row(page: int, caption: str, heads: list[str], cells: list[str], known: str) -> Iterator[Found]:
    match = CAPTION.match(caption)
    where = f"{match[1].capitalize()} {match[2]}, {cells[0]}" if match else cells[0]
    shift = len(cells) - len(heads)
    for index, cell in enumerate(cells[1:], 1):
        number = _cell(cell)
        if not number:
            continue
        head = heads[index - shift] if heads and 0 <= index - shift < len(heads) else ""
        metric = _metric(head) or _metric(cells[0]) or _metric(caption)
        unit = "%" if "%" in cell or "%" in head or (not heads and "%" in caption) else ""
        if metric or unit:
            dataset = _dataset(f"{head} {cells[0]}", "") or _dataset(caption, "")
            score = 3 * bool(unit) + 3 * bool(metric) + 2 * bool(dataset) + bool(match)
            quote, place = "  ".join(cells)[:MAX_SENTENCE], f"{where}, {head}" if head else where
            yield Found(score, float(number[1]), unit, metric, dataset or known, page, place[:100], quote)


def _cell(text: str) -> re.Match[str] | None:
    """A cell that is a number and little else: `0.95`, `21.4 %`, `99.1 ± 0.2`, `40.7*`."""
    return re.match(r"^[~≈<(]?(\d{1,6}(?:\.\d{1,6})?)\s?%?[*†‡)]?(?:\s?(?:±|\+/-)\s?[\d.]{1,8}\s?%?)?$", text[:40])


def _metric(text: str) -> str:
    return next((name for name, pattern in METRICS if pattern.search(text)), "")


# Ids


def _once(found: Iterable[Found]) -> Iterator[Found]:
    seen = set()
    for each in found:
        key = (each.value, each.page, each.quote)
        if key not in seen:
            seen.add(key)
            yield each


def _named(found: Iterable[Found], at_most: int) -> tuple[Candidate, ...]:
    """Ids say where it was found, and stay the same as long as the paper does."""
    named: dict[str, Candidate] = {}
    for each in found:
        words = f"p{each.page}-{each.metric}-{each.value:g}".lower()
        plain = re.sub(r"[^a-z0-9]+", "-", words)[:56].strip("-")
        name = next(n for n in (plain, *(f"{plain}-{i}" for i in range(2, len(named) + 3))) if n not in named)
        fields = {key: getattr(each, key) for key in ("value", "unit", "metric", "dataset", "page", "place", "quote")}
        named[name] = Candidate(id=name, **fields)
        if len(named) == at_most:
            break
    return tuple(named.values())
