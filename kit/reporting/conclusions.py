"""What a study says, in sentences, and only where an interval decides.

A comparison beyond the control (residual against cpt-instruct) is made here on the same items, with
its p-values adjusted by Holm over the lines that take part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kit.reporting.collect import Study
from kit.reporting.lines import Line, Score, Verdict, difference, find_line, task_infos, verdict
from kit.reporting.wording import show_bounds, show_difference
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
    """Plain sentences, the most important first."""
    return [*headlines(study), *arm_by_arm(study), scope(study)]


def headlines(study: Study) -> list[str]:
    """The residual against the naive way, and how far its weight can be turned up."""
    if not study.lines:
        return ["Nothing is measured yet."]
    said = [*_against_naive(study), *_sweep(study)]
    if study.control is None:
        said.append("There is no control to compare with, so nothing is said of gains and losses.")
    return said


def arm_by_arm(study: Study) -> list[str]:
    """One sentence per arm: what it gained and lost against the control."""
    said = []
    for arm in dict.fromkeys(line.arm for line in study.lines):
        line = find_line(study.lines, arm)
        if line is None or line.label == study.control:
            continue
        parts = [(s.info, s.difference, s.verdict) for s in _firsts(line) if s.difference]
        if parts:
            said.append(f"{line.label} against {study.control}: {_sorted_out(parts)}.")
    return said


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
    rivals = _weights(study)
    full = find_line(rivals, "residual")
    if naive is None or full is None:
        return []
    made = compare(rivals, naive)
    said = []
    for line in dict.fromkeys([full.label, (_dial(study) or full).label]):
        of_line = [c for c in made if c.line.label == line]
        said.append(f"{_headline(of_line)}: {_listed(of_line)}.")
    return said


def _headline(made: Sequence[Comparison]) -> str:
    """Win, loss, trade or nothing, over everything that was measured on both."""
    if not made:
        return "Nothing was measured on both"
    name, naive = made[0].line.label, made[0].other.label
    kept = _verdicts(made, ("instructions",))
    known = _verdicts(made, ("new_text", "knowledge"))
    everything = {c.verdict for c in made}
    if "better" in everything and "worse" not in everything:
        return f"{name} beats {naive}"
    if "worse" in everything and "better" not in everything:
        return f"{name} loses to {naive}"
    if "better" in kept and "worse" in known and "better" not in known:
        return f"{name} keeps more instruction following than {naive} and learns less"
    if "worse" in kept and "better" in known and "worse" not in known:
        return f"{name} keeps less instruction following than {naive} and learns more"
    if "better" in everything:
        return f"{name} wins something against {naive} and loses something"
    return f"These items do not tell {name} and {naive} apart"


def _verdicts(made: Sequence[Comparison], roles: tuple[Role, ...]) -> set[Verdict]:
    return {c.verdict for c in made if c.info.role in roles}


def _listed(made: Sequence[Comparison]) -> str:
    return _sorted_out([(c.info, c.found, c.verdict) for c in made])


def _sorted_out(found: Sequence[tuple[TaskInfo, PairedDifference, Verdict]]) -> str:
    """`better in Held-out text (...); worse in IFEval (...); undecided in Questions (...)`."""
    said = []
    for wanted in ("better", "worse", "undecided", "identical"):
        parts = [
            f"{info.title} ({_amount(info, gap)})"
            for info, gap, verdict_ in found
            if verdict_ == wanted
        ]
        if parts:
            said.append(f"{wanted} in {', '.join(parts)}")
    return "; ".join(said)


def _amount(info: TaskInfo, found: PairedDifference) -> str:
    """`-0.051 bits per byte [-0.060, -0.043]`."""
    unit = "points" if info.unit == "share" else "bits per byte"
    bounds = show_bounds(found.low, found.high, info, signed=True)
    return f"{show_difference(found.estimate, info)} {unit} {bounds}"


def _sweep(study: Study) -> list[str]:
    """How far the grafted adapter can be turned up before instructions are lost."""
    swept = _weights(study)
    follows = _task(study, "instructions")
    if len(swept) < 2 or follows is None or study.control is None:
        return []
    learned = [line for line in swept if _gains(line)]
    if not learned:
        return [
            f"Weights of the residual: none of the {len(swept)} decidedly learned something new."
        ]
    said = [
        f"{len(learned)} of {len(swept)} decidedly learned something new; of these "
        f"{_kept(_best(learned, follows))} kept most instruction following"
    ]
    dial = _dial(study)
    if dial is None:
        said.append(f"each of them decidedly lost {follows.title}")
    else:
        said.append(
            f"the strongest without a decided loss of it is {_kept(dial)}, though undecided is no "
            f"proof that nothing was lost"
        )
    return [f"Weights of the residual: {'; '.join(said)}. Both were picked on these items."]


def _kept(line: Line) -> str:
    """A line with its differences to the control in instructions and knowledge."""
    roles = ("instructions", "new_text", "knowledge")
    found = [s for s in _firsts(line) if s.difference and s.info.role in roles]
    parts = [f"{s.info.title} {_amount(s.info, s.difference)}" for s in found if s.difference]
    return f"{line.label} ({', '.join(parts)})"


def _dial(study: Study) -> Line | None:
    """Of the weights that learned something and lost no instruction following, the strongest."""
    follows = _task(study, "instructions")
    if follows is None:
        return None
    kept = [
        line
        for line in _weights(study)
        if _gains(line) and (score := line.first(follows.task)) and score.verdict != "worse"
    ]
    return max(kept, key=_weight, default=None)


def _best(lines: Sequence[Line], info: TaskInfo) -> Line:
    sign = 1 if info.better == "higher" else -1

    def rank(line: Line) -> float:
        score = line.first(info.task)
        return sign * score.interval.estimate if score else float("-inf")

    return max(lines, key=rank)


def scope(study: Study) -> str:
    """What the intervals are over, and what the seeds are."""
    count = len(study.seeds)
    if count == 0:
        seeds = "Nothing was trained."
    elif count == 1:
        seeds = "There is one seed per training; another one may come out otherwise."
    else:
        seeds = (
            f"Scores are means over {count} seeds per training; the spread over seeds has its own "
            f"table."
        )
    return f"Intervals are 95 % and over items. {seeds}"


def _weights(study: Study) -> list[Line]:
    """The residual's variants, without weight 0, which is the plain instruct model."""
    return [line for line in study.lines if line.arm == "residual" and _weight(line) != 0]


def _weight(line: Line) -> float:
    return float(line.settings.get("cpt_weight", 1.0))


def _gains(line: Line) -> bool:
    """Better than the control at new text or at a set of questions."""
    knows = [s.verdict for s in _firsts(line) if s.info.role in ("new_text", "knowledge")]
    return "better" in knows


def _firsts(line: Line) -> list[Score]:
    return [s for s in line.scores.values() if s.metric == s.info.metrics[0]]


def _task(study: Study, role: Role) -> TaskInfo | None:
    return next((info for info in task_infos(study.lines) if info.role == role), None)
