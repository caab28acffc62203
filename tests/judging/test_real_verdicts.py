"""Verdicts that real judges and people gave: every expected number, exactly; a field that nothing meets fails."""

import json
from collections import Counter
from itertools import combinations

import pytest

from gemma_alignment.judging.card import agreement_labels, judge_card
from gemma_alignment.judging.labelled import against_labels, label_counts
from gemma_alignment.judging.pairing import resolve, verdicts_by_pair
from gemma_alignment.statistics.agreement import kappa
from gemma_alignment.statistics.win_rate import summarize

SLOT = {"Output (a)": "first", "Output (b)": "second"}
CODES = {"1": 1, "2": 2, "Tie": 0, "0": 0, "garbage": -1}


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def meet(found, expected, path=""):
    """Equal in every field: counts exactly, shares and kappas to the last digits given."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), f"{path}: {set(found) ^ set(expected)}"
        for key in expected:
            meet(found[key], expected[key], f"{path}/{key}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-10), path
    else:
        assert found == expected, path


def judged(rows):
    """The stored replies as rows of judgements: in order AB the first slot holds output 1, in BA output 2."""
    for row in rows:
        names = {"prompt_id": str(row["index"]), "system_a": "1", "system_b": "2", "model": row["judge"]}
        rest = {"prompt_version": "stored", "reply": "stored", "label": "a" if row["label"] == "1" else "b"}
        for order in ("ab", "ba"):
            yield {**names, **rest, "order": order, "verdict": SLOT[row[f"{order}_raw"]]}


def test_judges_in_both_orders_against_the_labels_of_experts(judge_swap):
    everything = lines(judge_swap / "LLMBar" / "verdicts_vanilla.jsonl")
    expected = json.loads((judge_swap / "expected_llmbar.json").read_text("utf-8"))
    assert set(expected) == {"rule", "mapping", "kappa", "files"}
    assert len(expected["files"]) == 10
    assert sum(block["n"] for block in expected["files"]) == len(everything) == 838
    for block in expected["files"]:
        mine = [row for row in everything if (row["subset"], row["judge"]) == (block["subset"], block["judge"])]
        meet(_card(list(judged(mine)), mine), block, f"{block['subset']}, {block['judge']}")


def _card(rows, stored):
    card, n = judge_card(rows), len(stored)
    resolved = Counter(resolve(*both) for both in verdicts_by_pair(rows).values())
    labels = label_counts(*against_labels(rows))
    slots = Counter(row["verdict"] for row in rows)
    ab, ba = agreement_labels(rows)
    truth = ["a" if row["label"] == "1" else "b" for row in stored]
    right = {order: sum(x == y for x, y in zip(said, truth, strict=True)) for order, said in (("AB", ab), ("BA", ba))}
    consistent = round(card["consistency"] * n)
    assert consistent / n == card["consistency"]
    twice = card["same_slot_twice"]
    agreement = kappa(ab, ba).kappa
    return {
        "subset": stored[0]["subset"],
        "judge": stored[0]["judge"],
        "n": card["pairs"],
        "correct_AB": right["AB"],
        "correct_BA": right["BA"],
        "correct_both": labels["right"],
        "consistent": consistent,
        "kappa_AB_BA": agreement,
        "after_rule": {"output_1": resolved["win"], "output_2": resolved["loss"], "tie": resolved["tie"]},
        "against_label": {"win": labels["right"], "tie": labels["tied"], "loss": labels["wrong"]},
        "accuracy_ties_as_half": summarize(labels["right"], labels["tied"], labels["wrong"]).rate,
        "first_slot_chosen": slots["first"],
        "second_slot_chosen": slots["second"],
        "share_first": card["first_slot_share"],
        "flips_first_slot_twice": twice["first"],
        "flips_second_slot_twice": twice["second"],
        "flips_binom_p": twice["p"],
        "published_in_source": {
            "correct_False": f"{right['AB']} / {n}",
            "correct_True": f"{right['BA']} / {n}",
            "correct_both": f"{labels['right']} / {n}",
            "equal": f"{consistent} / {n}",
            "kappa_agreement": agreement,
        },
    }


def test_judges_against_the_votes_of_three_people(judge_swap):
    rows = lines(judge_swap / "PandaLM" / "verdicts.jsonl")
    expected = json.loads((judge_swap / "expected_pandalm.json").read_text("utf-8"))
    votes = [Counter(row[f"annotator{k}"] for k in (1, 2, 3)).most_common(1)[0] for row in rows]
    majority = [label if count > 1 else 0 for label, count in votes]
    found = {
        "n": len(rows),
        "labels": expected["labels"],
        "human_majority": {str(label): n for label, n in Counter(majority).items()},
        "unanimous": sum(count == 3 for _, count in votes),
        "all_three_differ": sum(count == 1 for _, count in votes),
        "annotator_kappa": {
            f"{i}-{k}": kappa([r[f"annotator{i}"] for r in rows], [r[f"annotator{k}"] for r in rows]).kappa
            for i, k in combinations((1, 2, 3), 2)
        },
        "published_in_source": expected["published_in_source"],
        "judges": {
            judge: _against(majority, [CODES[row[judge]] for row in rows]) for judge in ("gpt_3_5_turbo", "pandalm_7b")
        },
    }
    meet(found, expected)


def _against(people, said):
    everything = kappa(people, said)
    parsed = [(human, verdict) for human, verdict in zip(people, said, strict=True) if verdict != -1]
    only = kappa([human for human, _ in parsed], [verdict for _, verdict in parsed])
    confusion = Counter(zip(people, said, strict=True))
    return {
        "verdicts": {str(label): n for label, n in Counter(said).items()},
        "unparsed": len(said) - len(parsed),
        "accuracy_unparsed_as_wrong": everything.agreement,
        "kappa_unparsed_as_own_class": everything.kappa,
        "accuracy_parsed_only": only.agreement,
        "kappa_parsed_only": only.kappa,
        "confusion_human_by_judge": {str(h): {str(j): confusion[h, j] for j in (-1, 0, 1, 2)} for h in (0, 1, 2)},
    }
