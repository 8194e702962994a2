"""What a study says, in sentences, and only where an interval decides.

A comparison beyond the control (residual against cpt-instruct) is made here on the same items, with
its p-values adjusted by Holm over the lines that take part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kit.reporting.collect import Study
from kit.reporting.lines import Line, Score, Verdict, difference, find_line, task_infos, verdict
from kit.reporting.wording import show_bounds, show_difference, show_value
from kit.runs.records import Role, TaskInfo
from kit.stats import PairedDifference, holm

NAIVE = "cpt-instruct"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One line against another in one task."""

    line: Line
    other: Line
    info: TaskInfo
    found: PairedDifference
    verdict: Verdict


def conclusions(study: Study) -> list[str]:
    """Plain sentences, the most important first; empty when nothing was measured."""
    if not study.lines:
        return ["Nothing is measured yet."]
    said = [*_against_naive(study), *_sweep(study), *_arms(study)]
    if study.control is None:
        said.append("There is no control to compare with, so nothing is said of gains and losses.")
    return [*said, _scope(study)]


def compare(lines: Sequence[Line], other: Line) -> list[Comparison]:
    """Every line against `other` in the first metric of every task, Holm-adjusted per task."""
    made = []
    for info in task_infos([*lines, other]):
        against = other.first(info.task)
        pairs = []
        for line in lines:
            score = line.first(info.task)
            if line is other or score is None or against is None:
                continue
            found = difference(score, against)
            if found is not None:
                pairs.append((line, found))
        adjusted = holm([found.p_value for _, found in pairs])
        made += [
            Comparison(
                line=line, other=other, info=info, found=found, verdict=verdict(found, p, info)
            )
            for (line, found), p in zip(pairs, adjusted, strict=True)
        ]
    return made


def _against_naive(study: Study) -> list[str]:
    """Does the residual beat training on the instruct model itself?"""
    naive = find_line(study.lines, NAIVE)
    rivals = [line for line in study.lines if line.arm == "residual" and _weight(line) != 0]
    if naive is None or not rivals:
        return []
    made = compare(rivals, naive)
    said = []
    full = find_line(rivals, "residual")
    assert full is not None
    picked = list(dict.fromkeys(line.label for line in (full, _keeper(study, rivals)) if line))
    for label in picked:
        of_line = [c for c in made if c.line.label == label]
        said.append(f"{_headline(of_line)} {_listed(of_line)}.")
    return said


def _headline(made: Sequence[Comparison]) -> str:
    """Win, loss, trade or nothing, over instructions and knowledge together."""
    if not made:
        return "Nothing was measured on both."
    name, naive = made[0].line.label, made[0].other.label
    kept = _verdicts(made, ("instructions",))
    known = _verdicts(made, ("new_text", "knowledge"))
    everything = {c.verdict for c in made}
    if "better" in everything and "worse" not in everything:
        return f"{name} beats {naive}:"
    if "worse" in everything and "better" not in everything:
        return f"{name} loses to {naive}:"
    if kept == {"better"} and "better" not in known:
        return f"{name} keeps more instruction following than {naive} and learns less:"
    if kept == {"worse"} and "worse" not in known:
        return f"{name} learns more than {naive} and keeps less instruction following:"
    if "better" in everything:
        return f"{name} and {naive} each win somewhere:"
    return f"These items do not tell {name} and {naive} apart:"


def _verdicts(made: Sequence[Comparison], roles: tuple[Role, ...]) -> set[Verdict]:
    return {c.verdict for c in made if c.info.role in roles}


def _listed(made: Sequence[Comparison]) -> str:
    return "; ".join(_phrase(c.info, c.found, c.verdict) for c in made)


def _phrase(info: TaskInfo, found: PairedDifference, said: Verdict) -> str:
    """`Held-out text better (-0.05 bits per byte [-0.06, -0.04])`."""
    unit = "points" if info.unit == "share" else "bits per byte"
    bounds = show_bounds(found.low, found.high, info, signed=True)
    return f"{info.title} {said} ({show_difference(found.estimate, info)} {unit} {bounds})"


def _sweep(study: Study) -> list[str]:
    """Which weight of the grafted adapter kept most instruction following, at which gain."""
    swept = [line for line in study.lines if line.arm == "residual" and _weight(line) != 0]
    info = _task(study, "instructions")
    best = _keeper(study, swept)
    if len(swept) < 2 or info is None or best is None:
        return []
    gained = [line for line in swept if _gains(line)]
    score = best.first(info.task)
    assert score is not None
    value = show_value(score.interval.estimate, info)
    bounds = show_bounds(score.interval.low, score.interval.high, info)
    if not gained:
        return [
            f"No weight of the residual decidedly learned something new; the one that kept most "
            f"instruction following is {best.label} ({info.title} {value} {bounds})."
        ]
    gains = "; ".join(
        _phrase(s.info, s.difference, s.verdict)
        for s in _firsts(best)
        if s.difference and s.info.role in ("new_text", "knowledge")
    )
    return [
        f"Of the {len(swept)} residual weights, {len(gained)} decidedly learned something new; of "
        f"these {best.label} kept most instruction following ({info.title} {value} {bounds}), "
        f"with {gains}. It was picked on the same items, so its lead over its neighbours is "
        f"flattered."
    ]


def _keeper(study: Study, swept: Sequence[Line]) -> Line | None:
    """The best at instructions among those that learned something, or among all if none did."""
    info = _task(study, "instructions")
    if info is None:
        return None
    measured = [line for line in swept if line.first(info.task)]
    candidates = [line for line in measured if _gains(line)] or measured
    sign = 1 if info.better == "higher" else -1

    def rank(line: Line) -> float:
        score = line.first(info.task)
        assert score is not None
        return sign * score.interval.estimate

    return max(candidates, key=rank, default=None)


def _arms(study: Study) -> list[str]:
    """One sentence per arm: what it gained and lost against the control."""
    said = []
    for arm in dict.fromkeys(line.arm for line in study.lines):
        line = find_line(study.lines, arm)
        if line is None or line.label == study.control:
            continue
        parts = [_phrase(s.info, s.difference, s.verdict) for s in _firsts(line) if s.difference]
        if parts:
            said.append(f"{line.label} against {study.control}: {'; '.join(parts)}.")
    return said


def _scope(study: Study) -> str:
    count = len(study.seeds)
    if count == 0:
        seeds = "Nothing was trained."
    elif count == 1:
        seeds = "There is one seed per training: another one may come out otherwise."
    else:
        seeds = (
            f"Scores are means over {count} seeds per training; the spread over seeds has its own "
            f"table."
        )
    return f"Intervals are 95 % and over items. {seeds}"


def _weight(line: Line) -> float | int | None:
    return line.settings.get("cpt_weight")


def _gains(line: Line) -> bool:
    """Better than the control at new text or at a set of questions."""
    knows = [s.verdict for s in _firsts(line) if s.info.role in ("new_text", "knowledge")]
    return "better" in knows


def _firsts(line: Line) -> list[Score]:
    return [s for s in line.scores.values() if s.metric == s.info.metrics[0]]


def _task(study: Study, role: Role) -> TaskInfo | None:
    return next((info for info in task_infos(study.lines) if info.role == role), None)
