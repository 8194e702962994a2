"""What a report says beside the scores: what was asked, trained, counted, and with what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kit.reporting.collect import Study
from kit.reporting.tables import Cell, Grid
from kit.units import show_bytes, show_count, show_seconds

Facts = list[tuple[str, str]]
"""(what, value), in the order in which they are shown."""


def asked(study: Study) -> Facts:
    """The recipe in ten lines; what a recipe does not say is left out."""
    recipe = study.recipe
    models, corpus = _section(recipe, "models"), _section(recipe, "corpus")
    facts = [
        ("instruct model", models.get("instruct")),
        ("base model", models.get("base")),
        ("frozen weights", models.get("quantization")),
        ("new text", _joined(corpus.get("sources"))),
        ("held out", _heldout(corpus.get("heldout"))),
        ("general text", _joined(_section(recipe, "general").get("sources"))),
        ("control", study.control),
    ]
    if study.about.get("arms"):
        train = _section(recipe, "train")
        facts += [
            ("arms", _joined(study.about["arms"])),
            ("seeds", _joined(study.about.get("seeds"))),
            ("budget", _budget(train)),
            ("learning rate", train.get("learning_rate")),
            ("adapter", _adapter(_section(recipe, "lora"))),
        ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def ledger_facts(study: Study) -> Facts:
    """The token account; every number that the ledger has, in its own words."""
    return [
        (name.replace("_", " "), f"{value:,}")
        for name, value in study.ledger.items()
        if isinstance(value, int) and not isinstance(value, bool) and name not in _NO_COUNTS
    ]


_NO_COUNTS = ("schema_version", "eos_id", "pad_id", "bos_id")


def provenance_facts(study: Study) -> Facts:
    """Machine, versions, times, and how to do it again."""
    about = study.about
    versions = about.get("versions")
    if isinstance(versions, Mapping):
        versions = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    facts = [
        ("command", about.get("command")),
        ("recipe fingerprint", about.get("fingerprint")),
        ("kit commit", about.get("commit")),
        ("hardware", about.get("hardware")),
        ("python", about.get("python")),
        ("platform", about.get("platform")),
        ("versions", versions),
        ("started", about.get("started")),
        ("finished", about.get("finished")),
    ]
    return [(name, str(value)) for name, value in facts if value]


def stack_grid(study: Study) -> Grid:
    """What each line is made of."""
    rows = []
    for line in study.lines:
        tokens = ", ".join(f"{show_count(n)} {kind}" for kind, n in line.trained_tokens.items())
        cells = (
            line.label,
            line.stack,
            tokens or "-",
            ", ".join(map(str, line.seeds)) or "-",
            show_seconds(line.seconds),
            line.decode or "-",
        )
        rows.append(tuple(Cell(text=text) for text in cells))
    heads = ("arm", "stack", "trained tokens", "seeds", "measuring took", "weights held as")
    return Grid(
        title="Stacks",
        caption="what was loaded for each arm; trained tokens are those that bore loss, per seed.",
        headers=tuple((head, "") for head in heads),
        rows=tuple(rows),
        numeric=False,
    )


def training_grid(study: Study) -> Grid:
    """What each training did."""
    rows = []
    for training in study.trainings:
        found = training.result
        cells = (
            training.name,
            _number(found, "loss_tokens", show_count),
            _number(found, "num_steps", str),
            _number(found, "first_loss", lambda x: f"{x:.3f}"),
            _number(found, "last_loss", lambda x: f"{x:.3f}"),
            _number(found, "tokens_per_second", lambda x: f"{x:,.0f}"),
            _number(found, "peak_bytes", show_bytes),
            _number(found, "seconds", show_seconds),
        )
        rows.append(tuple(Cell(text=text) for text in cells))
    heads = (
        "training",
        "loss tokens",
        "updates",
        "first loss",
        "last loss",
        "tokens/s",
        "peak memory",
        "time",
    )
    return Grid(
        title="Trainings",
        caption="losses in nats per token: of the first update, and the mean of the last tenth.",
        headers=tuple((head, "") for head in heads),
        rows=tuple(rows),
    )


def limits(study: Study) -> list[str]:
    """What the numbers do not say."""
    count = len(study.seeds)
    said = [
        "The 95 % intervals cover what other items of the same kind would change: other documents, "
        "other prompts, other questions.",
        "Documents of one corpus resemble each other; the intervals take them as independent.",
    ]
    if count <= 1:
        said.append(
            "They do not cover the training: with one seed, another seed's result is unknown."
        )
    else:
        said.append(
            f"They do not cover the training: the {count} seeds are averaged, and their spread "
            f"stands in a table of its own."
        )
    return [
        *said,
        "One pair, one corpus and one budget were tried. What holds for a small model need not "
        "hold for a large one: the residual is reported to be weak at or below 1.5 billion "
        "parameters (arXiv 2410.10739).",
        "Bits per byte says how well the text is predicted, not whether one can ask for its facts.",
    ]


def _section(recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = recipe.get(name)
    return found if isinstance(found, dict) else {}


def _joined(values: Any) -> str:
    if isinstance(values, list | tuple):
        return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
    return "" if values is None else str(values)


def _heldout(rule: Any) -> str:
    if not isinstance(rule, dict):
        return ""
    return ", ".join(f"{name} {_joined(v)}" for name, v in rule.items() if v is not None)


def _budget(train: Mapping[str, Any]) -> str:
    if not isinstance(train.get("tokens"), int):
        return ""
    parts = [f"{show_count(train['tokens'])} tokens that bear loss, for every CPT arm"]
    if isinstance(train.get("seq_len"), int):
        parts.append(f"blocks of {train['seq_len']:,}")
    if isinstance(train.get("tokens_per_step"), int):
        parts.append(f"{train['tokens_per_step']:,} tokens per update")
    return ", ".join(parts)


def _adapter(lora: Mapping[str, Any]) -> str:
    if "rank" not in lora:
        return ""
    kind = "rsLoRA" if lora.get("rslora") else "LoRA"
    where = _joined(lora.get("target_modules"))
    return f"{kind}, rank {lora['rank']}, alpha {lora.get('alpha')}, on {where}"


def _number(found: Mapping[str, Any], name: str, show: Any) -> str:
    value = found.get(name)
    return str(show(value)) if isinstance(value, int | float) else "-"
