"""What the stages of one study share: checkpoints, tokenizers, text, and one loaded model."""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from kit.data.chats import read_chats
from kit.data.sources import DocumentSet, read_documents
from kit.data.splits import Split
from kit.errors import DataError
from kit.evaluation.engine import Engine
from kit.evaluation.task import Task
from kit.hardware import Hardware, detect
from kit.models.chat import Messages, check_chat_template
from kit.models.loading import dequantize, load_model, resolve_source
from kit.models.pair_check import require_pair
from kit.models.tokenizer import document_end, load_tokenizer, padding_id
from kit.models.weights import weights_fingerprint
from kit.planning.corpus import read_corpus
from kit.progress import Progress
from kit.recipe.schema import Evaluate, Recipe
from kit.recipe.suites import with_suite
from kit.runs.provenance import fingerprint
from kit.strategies.measuring import asking_tasks
from kit.units import show_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Study:
    """One recipe's checkpoints and text, made when first asked for.

    Args:
        recipe: what to do.
        progress: where to say what is done.
    """

    recipe: Recipe
    progress: Progress
    others: dict[str, str] = field(default_factory=dict)
    """Further checkpoints to measure: a name for each, and its source."""
    decisions: list[str] = field(default_factory=list)
    """Every choice that was made for the user, with its reason; each is printed once."""

    def decide(self, line: str) -> None:
        """Say a decision and keep it for the report."""
        if line not in self.decisions:
            self.decisions.append(line)
            self.progress.say(f"  {line}")

    @cached_property
    def hardware(self) -> Hardware:
        found = detect(self.recipe.models.compute_dtype)
        self.decide(found.line())
        return found

    @cached_property
    def folders(self) -> dict[str, Path]:
        """Local folders of the checkpoints, by name."""
        models = self.recipe.models
        sources = {"instruct": models.instruct, "base": models.base, **self.others}
        return {
            name: resolve_source(source, trust_remote_code=models.trust_remote_code)
            for name, source in sources.items()
            if source is not None
        }

    @cached_property
    def weights(self) -> dict[str, str]:
        """Fingerprints of the checkpoints' weights."""
        return {where: weights_fingerprint(folder) for where, folder in self.folders.items()}

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the checkpoints: weights, config, tokenizer, chat template."""
        return {
            where: fingerprint([self.weights[where], _small_files(folder)])
            for where, folder in self.folders.items()
        }

    @cached_property
    def chats(self) -> list[Messages]:
        """What the arm cpt-sft is tuned on; empty without a section sft."""
        sft = self.recipe.sft
        return [] if sft is None else read_chats(sft.sources, limit=sft.examples)

    @cached_property
    def asking(self) -> list[Task]:
        """The tasks that are the same for every corpus: benchmarks, instructions, questions."""
        return asking_tasks(self.evaluate, decide=self.decide)

    @cached_property
    def asked_fingerprint(self) -> str:
        """Of the contents of everything that the model is asked, beside the corpus."""
        return fingerprint(
            [
                [asdict(task.info), [task.item_text(n) for n in range(len(task.item_ids))]]
                for task in self.asking
            ]
        )

    def tokenizer(self, where: str) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer."""
        if where not in self._tokenizers:
            self._tokenizers[where] = load_tokenizer(
                self.folders[where], trust_remote_code=self.recipe.models.trust_remote_code
            )
        return self._tokenizers[where]

    @cached_property
    def _tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        return {}

    def asking_tokenizer(self, where: str) -> PreTrainedTokenizerBase:
        """What a checkpoint is asked with: in a pair the instruct model's, for the same prompts."""
        return self.tokenizer("instruct" if where == "base" else where)

    @property
    def text_tokenizer(self) -> PreTrainedTokenizerBase:
        """What the corpus is tokenised with: the base's, where there is one."""
        return self.tokenizer("base" if "base" in self.folders else "instruct")

    @cached_property
    def document_end(self) -> int:
        """The id that ends a document."""
        end, why = document_end(self.text_tokenizer)
        self.decide(f"documents end with id {end}: {why}")
        return end

    @cached_property
    def padding(self) -> int:
        """The id that fills up a block."""
        pad, why = padding_id(self.text_tokenizer, end_id=self.document_end)
        self.decide(f"blocks are filled up with id {pad}: {why}")
        return pad

    @cached_property
    def corpus(self) -> tuple[DocumentSet, Split]:
        """The new text, and the same in two: to train on, and held out."""
        assert self.recipe.corpus is not None, "this recipe has no corpus"
        return read_corpus(self.recipe.corpus)

    @property
    def split(self) -> Split:
        """The corpus in two; both are empty without one."""
        return self.corpus[1] if self.recipe.corpus is not None else Split((), (), 0, "no corpus")

    @cached_property
    def evaluate(self) -> Evaluate:
        """What is measured, the suite filled in."""
        return with_suite(self.recipe.evaluate)

    @cached_property
    def general(self) -> DocumentSet:
        section = self.recipe.general
        return read_documents(section.sources, text_field=section.text_field)

    def check(self) -> None:
        """Look at everything that can be wrong before anything is written.

        Raises:
            KitError: the first thing that is wrong.
        """
        text = sum(len(document.text.encode()) for document in self.split.train)
        # A token is at least a byte.
        if self.recipe.corpus is not None and text < self.recipe.train.seq_len:
            raise DataError(
                f"the text to learn has {text} bytes, less than one block of "
                f"{self.recipe.train.seq_len} tokens",
                where="corpus.sources",
                fix="give more text, or lower train.seq_len",
            )
        _ = self.general
        if "cpt-sft" in self.recipe.study.arms:
            _ = self.chats
        _ = self.asking
        check_chat_template(self.tokenizer("instruct"))
        if "base" in self.folders:
            require_pair(self.folders["base"], self.folders["instruct"])
        _ = self.padding

    def load(self, where: str) -> PreTrainedModel:
        """A fresh copy of a checkpoint, as the recipe wants it held."""
        return load_model(
            self.folders[where],
            quantization=self.recipe.models.quantization,
            hardware=self.hardware,
            trust_remote_code=self.recipe.models.trust_remote_code,
        )


class Shelf:
    """Keeps the one model that is being measured, so that stacks on it share the load."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._where: str | None = None
        self._engine: Engine | None = None
        self.decode = ""

    def engine(self, where: str) -> Engine:
        """The checkpoint, ready to measure; what was on the shelf before is let go."""
        if self._where != where or self._engine is None:
            self.clear()
            model = self.study.load(where)
            self.decode = self._prepare(model)
            evaluate = self.study.evaluate
            self._where = where
            self._engine = Engine(
                model,
                self.study.asking_tokenizer(where),
                batch_size=evaluate.batch_size,
                max_length=evaluate.seq_len,
            )
            if why := self._engine.plain_because:
                self.study.decide(f"common prefixes are computed again for every item: {why}")
        return self._engine

    def clear(self) -> None:
        """Let the model go and give its memory back."""
        import torch

        self._engine, self._where = None, None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _prepare(self, model: PreTrainedModel) -> str:
        import torch

        quantization = self.study.recipe.models.quantization
        if quantization != "nf4":
            return f"{quantization} weights"
        dtype = getattr(torch, self.study.hardware.compute_dtype)
        needed = model.num_parameters() * dtype.itemsize
        free = _free_bytes(self.study.hardware)
        if needed > 0.6 * free:
            decode = (
                f"4-bit weights: a {show_bytes(needed)} copy does not fit well in the "
                f"{show_bytes(free)} that are free"
            )
        else:
            dequantize(model, dtype=dtype)
            decode = (
                f"the 4-bit weights, dequantised once to {self.study.hardware.compute_dtype} "
                f"({show_bytes(needed)}): the same numbers, several times faster to decode with"
            )
        self.study.decide(f"measuring with {decode}")
        return decode


def _small_files(folder: Path) -> dict[str, str]:
    """Contents of what stands beside the weights: config, tokenizer, chat template."""
    paths = [p for pattern in ("*.json", "*.jinja", "*.model") for p in folder.glob(pattern)]
    return {p.name: p.read_bytes().hex() for p in sorted(paths) if p.stat().st_size < 1 << 26}


def _free_bytes(hardware: Hardware) -> int:
    import torch

    if hardware.device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        line = next(line for line in text.splitlines() if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return hardware.memory_bytes // 2
