"""IFEval (arXiv 2311.07911): instructions that code can verify, by lm-eval's own task.

lm-eval gives the prompts and judges the replies; the kit's engine writes them. Four metrics:

    prompt_strict        prompts with all their instructions followed
    instruction_strict   instructions followed, of those asked
    prompt_loose, instruction_loose   the same, of the best of eight trimmed versions of the reply
"""

from __future__ import annotations

import io
import json
import os
import random
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import DataError
from kit.evaluation.local_data import ifeval_file
from kit.evaluation.task import Cost, Scores, Verdict, reply_rows
from kit.models.chat import chat_prompt
from kit.progress import Advance, silent
from kit.runs.records import ItemRow, TaskInfo

if TYPE_CHECKING:
    from kit.evaluation.engine import Engine

_METRICS = {
    "prompt_strict": "prompt_level_strict_acc",
    "instruction_strict": "inst_level_strict_acc",
    "prompt_loose": "prompt_level_loose_acc",
    "instruction_loose": "inst_level_loose_acc",
}
"""The kit's names and lm-eval's."""
_FIELDS = {"key", "prompt", "instruction_id_list", "kwargs"}


class IFEval:
    """IFEval on an instruct model, asked through its chat template.

    Everything that can be missing is looked for when the task is made, not after a training.

    Args:
        data: a local jsonl of the prompts. None: the official ones, from the hub or its cache.
        data_dir: folder with the benchmarks' data, looked into where `data` is None.
        prompts: how many, spread evenly over all. None: all.
        max_new_tokens: longest reply.

    Raises:
        DataError: the prompts or NLTK's sentence data cannot be had.
    """

    chunk = 128

    def __init__(
        self,
        *,
        data: Path | None,
        data_dir: Path | None = None,
        prompts: int | None,
        max_new_tokens: int,
    ) -> None:
        self.info = TaskInfo(
            task="ifeval",
            title="IFEval",
            role="instructions",
            metrics=tuple(_METRICS),
            better="higher",
        )
        if data is None and data_dir is not None:
            data = ifeval_file(data_dir)
        _require_sentence_data()
        self._task, docs = _load_task(data)
        self._docs = [docs[index] for index in spread(len(docs), prompts)]
        self.item_ids = tuple(str(doc["key"]) for doc in self._docs)
        self._max_new_tokens = max_new_tokens

    def run(
        self, engine: Engine, numbers: Sequence[int], advance: Advance = silent
    ) -> list[ItemRow]:
        """Ask the prompts of these numbers as chat turns."""
        prompts = self._prompts(engine, numbers)
        replies = engine.generate(prompts, max_new_tokens=self._max_new_tokens, advance=advance)
        return reply_rows(
            self.info.task,
            [self.item_ids[number] for number in numbers],
            prompts=prompts,
            replies=replies,
            judge=lambda place, text: self.judge(numbers[place], text),
        )

    def cost(self, engine: Engine) -> Cost:
        """Tokens of all prompts, and of their replies at full length."""
        prompts = self._prompts(engine, range(len(self._docs)))
        return Cost(read=sum(map(len, prompts)), written=len(prompts) * self._max_new_tokens)

    def item_text(self, number: int) -> str:
        """The prompt; there is no one right answer."""
        return str(self._task.doc_to_text(self._docs[number]))

    def _prompts(self, engine: Engine, numbers: Sequence[int]) -> list[list[int]]:
        return [
            chat_prompt(engine.tokenizer, [{"role": "user", "content": self.item_text(number)}])
            for number in numbers
        ]

    def judge(self, number: int, text: str) -> Verdict:
        """What lm-eval's checker says about a reply to the prompt of that number."""
        try:
            with _fixed_chance():
                found = self._task.process_results(self._docs[number], [text])
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            # The checkers are others' code, and a reply can be anything.
            return Verdict(False, {}, error=f"the checker failed: {type(error).__name__}: {error}")
        scores: Scores = {}
        for name, theirs in _METRICS.items():
            value = found[theirs]
            followed = value if isinstance(value, list) else [value]
            scores[name] = (float(sum(followed)), float(len(followed)))
        return Verdict(bool(found[_METRICS["prompt_strict"]]), scores)


def spread(total: int, count: int | None) -> list[int]:
    """Numbers of `count` things spread evenly over `total`; all of them for None or too many."""
    if count is None or count >= total:
        return list(range(total))
    return [index * total // count for index in range(count)]


@contextmanager
def _fixed_chance() -> Iterator[None]:
    """Judge a reply the same way in any order.

    For two prompts (keys 1122 and 1129) the checker draws a random letter, and langdetect draws
    too; both are seeded for each reply, and the process's own random state is put back.
    """
    from langdetect import DetectorFactory

    state, seed = random.getstate(), DetectorFactory.seed
    random.seed(0)
    DetectorFactory.seed = 0
    try:
        yield
    finally:
        random.setstate(state)
        DetectorFactory.seed = seed


def _load_task(data: Path | None) -> tuple[Any, list[dict[str, Any]]]:
    """lm-eval's task and its rows, the local ones where given.

    Raises:
        DataError: there are none, or they are not rows of IFEval.
    """
    import datasets

    source = "google/IFEval" if data is None else str(data)
    if data is not None and not data.is_file():
        raise DataError("there is no such file", where=source, fix="check evaluate.ifeval.data")
    showed_bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        task, docs = _official_task() if data is None else _local_task(data)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise DataError(
            f"IFEval's prompts could not be read: {reason}",
            where=source,
            fix="check the network, or set evaluate.ifeval.data to a jsonl of the prompts",
        ) from error
    finally:
        if showed_bars:
            datasets.enable_progress_bars()
    _check_docs(docs, where=source)
    return task, docs


def _official_yaml() -> Path:
    import lm_eval

    return Path(lm_eval.__file__).parent / "tasks" / "ifeval" / "ifeval.yaml"


def _official_task() -> tuple[Any, list[dict[str, Any]]]:
    from lm_eval.tasks import TaskManager

    # Only this task's folder is searched: indexing all of lm-eval's takes seconds.
    manager = TaskManager(include_path=str(_official_yaml().parent), include_defaults=False)
    task = manager.load("ifeval")["tasks"]["ifeval"]
    return task, list(task.eval_docs)


def _local_task(data: Path) -> tuple[Any, list[dict[str, Any]]]:
    """The same task with its data replaced: nothing else in its definition changes."""
    from lm_eval.tasks import TaskManager

    name = "ifeval_local"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        definition = {
            "include": str(_official_yaml()),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            # An own cache: the user's would serve an older version of an edited file.
            "dataset_kwargs": {
                "cache_dir": str(Path(folder) / "cache"),
                "data_files": {"train": str(data.resolve())},
            },
        }
        # JSON is YAML.
        (Path(folder) / f"{name}.yaml").write_text(json.dumps(definition), encoding="utf-8")
        manager = TaskManager(include_path=folder, include_defaults=False)
        task = manager.load(name)["tasks"][name]
        return task, list(task.eval_docs)


def _check_docs(docs: list[dict[str, Any]], *, where: str) -> None:
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    problem = "" if docs else "there is no prompt"
    seen: set[Any] = set()
    for number, doc in enumerate(docs, start=1):
        missing = sorted(_FIELDS - {name for name in doc if doc[name] is not None})
        if missing:
            problem = f"row {number} has no {', '.join(missing)}"
        elif doc["key"] in seen:
            problem = f"row {number} has the key {doc['key']} of an earlier row"
        elif unknown := set(doc["instruction_id_list"]) - set(INSTRUCTION_DICT):
            problem = f"row {number} asks for {min(unknown)}, which the checker does not know"
        elif len(doc["instruction_id_list"]) != len(doc["kwargs"]):
            problem = f"row {number} has not one kwargs entry for each instruction"
        if problem:
            break
        seen.add(doc["key"])
    if problem:
        raise DataError(
            f"these are not IFEval's prompts: {problem}",
            where=where,
            fix="use the published input_data.jsonl: key, prompt, instruction_id_list, kwargs",
        )


def _require_sentence_data() -> None:
    """NLTK's punkt_tab can be read, or is fetched unless the hub is set offline.

    lm-eval looks for it when its checkers are imported, so this comes before that.

    Raises:
        DataError: it is missing, or NLTK refuses the files.
    """
    import nltk

    # NLTK reads NLTK_DATA when it is imported, which may have been before a notebook set it.
    for folder in reversed(os.environ.get("NLTK_DATA", "").split(os.pathsep)):
        if folder and folder not in nltk.data.path:
            nltk.data.path.insert(0, folder)
    reason = _sentence_data_problem()
    if reason and not _is_offline():
        nltk.download("punkt_tab", quiet=True, print_error_to=io.StringIO())
        reason = _sentence_data_problem()
    if reason:
        raise DataError(
            f"IFEval counts sentences with NLTK's punkt_tab, which cannot be read: {reason}",
            where=os.environ.get("NLTK_DATA") or "NLTK's default folders",
            fix="run `python -m nltk.downloader punkt_tab`, or set NLTK_DATA to a plain copy of an "
            "nltk_data folder (cp -r, then chmod -R go-w): NLTK refuses files with hard links and "
            "files that others can write",
        )


def _sentence_data_problem() -> str:
    from nltk.tokenize import PunktTokenizer

    try:
        with warnings.catch_warnings():
            # A refused folder is a warning and then a LookupError; the error says it all.
            warnings.simplefilter("ignore", RuntimeWarning)
            PunktTokenizer("english")
    except PermissionError as error:
        return str(error)
    except LookupError as error:
        told = [line.strip() for line in str(error).splitlines()]
        refused = next((line for line in told if line.startswith("Refused")), "")
        return refused.partition(" (")[0] or "it was not found"
    return ""


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
