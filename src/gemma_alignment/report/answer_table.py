"""The answers of the SFT model and of one seed of each method, prompt by prompt, to search, sort and filter."""

from collections.abc import Mapping, Sequence
from typing import Any

from gemma_alignment.report.formatting import name_of, number, pair_name
from gemma_alignment.report.html import Content, Html, h, join
from gemma_alignment.report.runs import SFT, Run, RunKey, finite
from gemma_alignment.report.win_rates import Outcomes

Block = Mapping[str, Any]

_RANK = {"win": 0, "tie": 1, "loss": 2, None: 3}
_FLIPPED = {"win": "loss", "loss": "win", "tie": "tie", None: None}


def answers(
    runs: Mapping[RunKey, Run], families: Sequence[str], outcomes: Outcomes, most: int, length: int
) -> Html | None:
    """The first prompts of the file with what each system answered, its scores, and the judge's words.

    Args:
        runs: every run, with its answers.
        families: the two methods.
        outcomes: (system a, system b, prompt) -> win, loss, tie or None, for system a.
        most: prompts shown.
        length: characters shown of a text.
    """
    seeds = [
        {k.seed for k, r in runs.items() if k.family == f and k.seed is not None and r.responses} for f in families
    ]
    common = sorted(set.intersection(*seeds)) if seeds else []
    sft = RunKey(SFT, None)
    systems = [sft] if sft in runs and runs[sft].responses else []
    systems += [RunKey(f, common[0]) for f in families] if common else []
    if not systems or not most:
        return None
    tables = [{str(row["prompt_id"]): row for row in runs[key].responses} for key in systems]
    prompts = [p for p in tables[0] if all(p in one for one in tables)][:most]
    words = {p: _words(systems, outcomes, p) for p in prompts}
    judged = any(found for found in words.values())
    names = [name_of(key.family) for key in systems]
    rows = [
        _row(i, dict(zip(names, (one[p] for one in tables), strict=True)), words[p], judged, length)
        for i, p in enumerate(prompts)
    ]
    seed = f", seed {common[0]}" if common else ""
    note = f"The first {len(prompts)} held-out prompts in file order{seed}; none is picked by hand."
    heads = ["Prompt", *names, *(["Verdict"] if judged else [])]
    controls = _controls(systems if judged else ())
    return join([h("p", note, class_="note"), controls, h("div", _table(heads, rows), id="answer-table")])


def _words(systems: Sequence[RunKey], outcomes: Outcomes, prompt: str) -> dict[tuple[str, str], str | None]:
    """What was said of each pair of systems that met, the two methods first; for the first of a pair."""
    found: dict[tuple[str, str], str | None] = {}
    later_first = [*systems[1:], *systems[:1]] if systems[0].family == SFT else list(systems)
    for i, a in enumerate(later_first):
        for b in later_first[i + 1 :]:
            if (key := (a.name, b.name, prompt)) in outcomes:
                found[a.family, b.family] = outcomes[key]
            elif (key := (b.name, a.name, prompt)) in outcomes:
                found[a.family, b.family] = _FLIPPED[outcomes[key]]
    return found


def _row(
    place: int, given: Mapping[str, Block], words: Mapping[tuple[str, str], str | None], judged: bool, length: int
) -> Html:
    sort = [str(place), *(_score(row) for row in given.values())]
    prompt = str(next(iter(given.values()))["prompt"])
    cells = [h("th", cut(prompt, length), scope="row")]
    cells += [h("td", _answer(row, length), data_system=name) for name, row in given.items()]
    verdict = None
    if judged:
        said = [_said(pair, word) for pair, word in words.items()]
        verdict = said[0] if said else "no result"
        sort.append(str(_RANK[next(iter(words.values()), None)]))
        cells.append(h("td", h("b", verdict), *(h("small", one) for one in said[1:]), data_system="Verdict"))
    return h("tr", *cells, data_sort=" ".join(sort), data_verdict=verdict)


def _score(row: Block) -> str:
    value = finite(row.get("reward_model_score"))
    return "-inf" if value is None else f"{value:.6g}"


def _said(pair: tuple[str, str], word: str | None) -> str:
    a, b = map(name_of, pair)
    return {"win": f"{a} beat {b}", "loss": f"{b} beat {a}", "tie": f"{pair_name(*pair)}: tie"}.get(
        word or "", f"{pair_name(*pair)}: no result"
    )


def _answer(row: Block, length: int) -> Html:
    parts = [f"score {number(row.get('reward_model_score'), 2)}"]
    if row.get("gold_score") is not None:
        parts.append(f"true quality {number(row['gold_score'], 1)}")
    parts.append(f"{row.get('num_tokens')} tokens" + ("" if row.get("ended", True) else ", cut off"))
    return join([h("span", cut(str(row["response"]), length), class_="answer"), h("small", " · ".join(parts))])


def cut(text: str, length: int) -> str:
    """At most so many characters, with a mark where the rest is missing."""
    return text if len(text) <= length else f"{text[:length].rstrip()} […]"


def _controls(judged: Sequence[RunKey]) -> Html:
    search = h("input", type="search", id="search", placeholder="Search in prompts and answers", aria_label="Search")
    choice = None
    methods = [key.family for key in judged if key.family != SFT]
    if len(methods) == 2:
        said = [_said((methods[0], methods[1]), word) for word in ("win", "loss", "tie", None)]
        options = [h("option", "every verdict", value=""), *(h("option", one, value=one) for one in said)]
        choice = h("label", "show ", h("select", *options, id="verdict"))
    count = h("span", "", id="search-count", class_="note", role="status")
    return h("p", search, " ", choice, " ", count, class_="no-print controls")


def _table(heads: Sequence[str], rows: Sequence[Html]) -> Html:
    cells: list[Content] = [
        h("th", h("button", head, type="button", title="sort"), scope="col", aria_sort="none") for head in heads
    ]
    note = "A click on a head sorts: prompts by their place in the file, systems by the score."
    inner = h("table", h("caption", note, class_="note"), h("thead", h("tr", *cells)), h("tbody", *rows))
    return h("div", inner, class_="scroll tall", tabindex="0", role="group", aria_label="answers side by side")
