"""Studies in the documentation: every row and comparison, and what each recipe key is worth."""

from __future__ import annotations

from benchmarks.common.markdown import NO_RESULTS, Found, facts, markdown, share

_HEAD = ("", "test accuracy (95 % interval)", "temporal-order pairs (95 % interval)")
_REPORTED = "Roy (2025), on RAVDESS's hardest pair of actors"


def study_text(found: Found) -> str:
    """A study's rows part by part, and how the rows of each differ."""
    date, versions, command = facts(found).values()
    machine = found["machine"]
    where = machine["gpu"] or f"{machine['processors']} cores of {machine['processor']}, no GPU"
    about = f"{date}, {where}, {versions}, {command}: {len(found['cells'])} runs"
    texts = [f"### Study `{found['name']}`: {found['corpus']}, protocol {found['protocol']}"]
    texts.append(f"{about}, {found['minutes']:.0f} minutes of training and testing.")
    for part in found["parts"]:
        rows = [[*_HEAD, _REPORTED]]
        # One figure for several rows says nothing of how they differ.
        is_told = len(part["rows"]) == 1 or len({row["report"] for row in part["rows"]}) > 1
        for row in part["rows"]:
            accuracy = "not finished" if row["accuracy"] is None else share(row)
            reported = f"{row['report'] * 100:.1f} %" if is_told and row["report"] is not None else "-"
            label = f"{row['label']} (did not learn)" if row.get("has_learned") is False else row["label"]
            rows.append([label, accuracy, share(row["order"]) if row["order"] else "-", reported])
        texts += [f"**{part['title']}**", markdown(rows)]
        if part["comparisons"]:
            # The difference of accuracies in points, on all clips and on those that order alone tells apart.
            rows = [["pair", "all clips: points, p", "over actors: points, p", "temporal-order pairs: points, p"]]
            by_order = {(it["a"], it["b"]): _points(it) for it in part.get("order_comparisons") or []}
            for it in part["comparisons"]:
                ordered = by_order.get((it["a"], it["b"]), "-")
                rows.append([f"{it['a']} minus {it['b']}", _points(it), _points(it, "people"), ordered])
            summary = "<summary>Comparisons, paired by take</summary>"
            texts.append(f"<details markdown>{summary}\n\n{markdown(rows)}\n\n</details>")
    return "\n\n".join(texts)


def keys_text(found: dict[str, list[Found]]) -> str:
    """What each recipe key is worth by the first part of study `recipes`, whose first row has none, best first."""
    part = next((it["parts"][0] for it in found.get("study", []) if it["name"] == "recipes"), None)
    if part is None:
        return NO_RESULTS
    first, by_label = part["rows"][0], {row["label"]: row for row in part["rows"]}
    rows = []
    gains = [it for it in part["comparisons"] if it["b"] == first["label"]]
    for pair in sorted(gains, key=lambda it: it["difference"], reverse=True):
        row = by_label[pair["a"]]
        keys = (f"`{key} {value}`" for key, value in row["settings"].items() if key not in first["settings"])
        chance = ", may be chance" if pair["p_bootstrap_holm"] >= 0.05 else ""
        gain = "did not learn" if row["has_learned"] is False else f"{pair['difference'] * 100:+.1f} points{chance}"
        rows.append([", ".join(keys), gain])
    return markdown([["key", "added to the recipe of Roy (2025)"], *rows])


def _points(pair: Found, over: str = "") -> str:
    interval, p = ("interval_people", "p_people_holm") if over else ("interval", "p_bootstrap_holm")
    if interval not in pair:
        return "-"
    low, high = pair[interval]
    return f"{pair['difference'] * 100:+.1f} ({low * 100:+.1f} to {high * 100:+.1f}), {pair[p]:.3f}"
