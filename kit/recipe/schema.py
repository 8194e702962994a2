"""What a recipe may say: one strict section per question that a run must answer.

Every section is frozen, rejects unknown keys and takes no value of the wrong type. The text under
a field is its documentation, in `kit schema` and in the README's table alike.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from kit.units import parse_tokens

ArmName = Literal[
    "instruct",
    "base",
    "cpt-instruct",
    "cpt-base",
    "residual",
    "residual-lowrank",
    "residual-only",
    "cpt-sft",
]
Quantization = Literal["nf4", "16bit", "32bit"]
Tokens = Annotated[int, BeforeValidator(parse_tokens, json_schema_input_type=int | str)]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
SuiteName = Literal["quick", "standard", "full"]


class Section(BaseModel):
    """The strict base of every section."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class Models(Section):
    """The pair of checkpoints, and how they are loaded."""

    instruct: str
    """The instruct model: a hub id, a local folder, a `.gguf` file, or `lilliput:instruct`."""
    base: str | None = None
    """The base model it was tuned from, written the same way. None: only the arms on `instruct`."""
    quantization: Quantization = "nf4"
    """How frozen weights are held: NF4 with double quantisation, 16 bit, or 32 bit."""
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """The dtype of activations. auto: what the hardware does well, with the reason printed."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint. Only for sources that you have read."""

    @model_validator(mode="after")
    def _dtype_has_an_effect(self) -> Models:
        if self.quantization == "32bit" and self.compute_dtype in ("bfloat16", "float16"):
            raise ValueError(
                f"quantization 32bit computes in float32, so compute_dtype {self.compute_dtype!r} "
                "would have no effect"
            )
        return self


class Heldout(Section):
    """Which documents are kept from training, to measure what was learned."""

    every: Annotated[int, Field(ge=2)] | None = None
    """Every n-th document in order of date (or of reading, without dates) is held out."""
    from_date: str | None = None
    """Documents of this ISO date and later are held out."""
    share: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """A random share of the documents is held out, drawn with the data seed."""
    sources: list[str] | None = None
    """Own sources whose documents are all held out."""

    @model_validator(mode="after")
    def _one_way(self) -> Heldout:
        chosen = [n for n in ("every", "from_date", "share", "sources") if getattr(self, n)]
        if len(chosen) != 1:
            named = ", ".join(chosen) or "none"
            raise ValueError(f"set exactly one of every, from_date, share, sources (set: {named})")
        return self


class Corpus(Section):
    """The new text: what continual pre-training is to teach."""

    sources: Annotated[list[str], Field(min_length=1)]
    """Files (txt, md, jsonl, parquet), folders, `hub:OWNER/NAME[:SPLIT]`, `lilliput:new-train`."""
    text_field: str = "text"
    """The field of a row that holds the text (jsonl, parquet, hub)."""
    date_field: str | None = None
    """The field of a row that holds an ISO date. None: the documents have no dates."""
    from_date: str | None = None
    """Documents before this ISO date are left out. None: all are taken."""
    heldout: Heldout = Heldout(share=0.1)
    """Which documents are held out."""
    bad_utf8: Literal["error", "skip"] = "error"
    """A file that is no UTF-8 is an error, or is left out and counted."""


class GeneralText(Section):
    """Old, general text: how much of it the model forgets."""

    sources: Annotated[list[str], Field(min_length=1)] = ["pydoc:topics"]
    """As in `corpus.sources`. `pydoc:topics` is an English text that every Python carries."""
    text_field: str = "text"
    """The field of a row that holds the text."""
    max_documents: Positive = 100
    """At most so many documents are measured, the first ones."""


class Lora(Section):
    """The adapter that is trained."""

    rank: Positive = 32
    """Rank of every low-rank pair."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The delta is scaled by alpha / rank, or by alpha / sqrt(rank) with rsLoRA."""
    rslora: bool = True
    """Scale by 1 / sqrt(rank), arXiv 2312.03732."""
    dropout: Share = 0.0
    """Dropout on the adapter's input while training."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the adapted modules; each must match. all-linear: every linear but the head."""


class Train(Section):
    """Continual pre-training."""

    tokens: Tokens = 1_000_000
    """The budget of every CPT arm, in tokens that bear loss."""
    seq_len: Positive = 1024
    """Tokens per block."""
    micro_batch_size: Positive = 1
    """Blocks per forward pass."""
    tokens_per_step: Tokens = 16_384
    """Tokens per update; gradient accumulation is derived."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak rate of the schedule."""
    warmup_share: Share = 0.05
    """Share of the updates with a rising rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay (AdamW) on the adapter."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""


class Sft(Section):
    """The small instruction tuning of the arm `cpt-sft`."""

    sources: Annotated[list[str], Field(min_length=1)]
    """jsonl files of chats (`messages`) or `instruction`, `input`, `output`; `lilliput:chats`."""
    examples: Positive = 1000
    """At most so many chats are used, the first ones."""
    epochs: Positive = 1
    """Passes over them."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak rate."""
    batch_size: Positive = 8
    """Chats per update."""
    micro_batch_size: Positive = 4
    """Chats per forward pass."""
    max_length: Positive = 1024
    """A longer chat is left out and counted."""

    @model_validator(mode="after")
    def _whole_updates(self) -> Sft:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) is no multiple of micro_batch_size "
                f"({self.micro_batch_size})"
            )
        return self


class Study(Section):
    """Which arms are compared, and over what they are swept."""

    arms: Annotated[list[ArmName], Field(min_length=1)] = ["instruct", "cpt-instruct"]
    """The arms."""
    control: ArmName = "instruct"
    """The arm that every other arm is compared with, item by item. It must be among the arms."""
    cpt_weights: Annotated[list[float], Field(min_length=1)] = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
    """Weights of the CPT adapter in `residual`. 0 is the plain instruct model."""
    residual_ranks: Annotated[list[Positive], Field(min_length=1)] = [32]
    """Ranks of the low-rank residual in `residual-lowrank` and `residual-only`."""
    residual_weights: Annotated[list[float], Field(min_length=1)] = [1.0]
    """Weights of the low-rank residual in `residual-only`."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1, 2]
    """Every training is repeated with each seed (adapter init and data order)."""

    @model_validator(mode="after")
    def _control_is_an_arm(self) -> Study:
        if self.control not in self.arms:
            raise ValueError(f"control is {self.control!r}, which is not among the arms")
        for name in ("arms", "cpt_weights", "residual_ranks", "residual_weights", "seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names something twice: {values}")
        return self


class IFEval(Section):
    """Instruction following by verifiable instructions (arXiv 2311.07911), lm-eval's task."""

    data: str | None = None
    """A local jsonl of the task's prompts. None: lm-eval fetches the official ones."""
    prompts: Positive | None = 60
    """A slice, spread evenly over the prompts. None: all 541."""
    max_new_tokens: Positive = 512
    """Longest reply; one that is cut counts as truncated."""


class Questions(Section):
    """Questions about the new text, asked of every arm."""

    sources: Annotated[list[str], Field(min_length=1)]
    """jsonl files with `question` and `answer` (text, or accepted texts); `lilliput:new-chat`."""
    form: Literal["chat", "plain"] = "chat"
    """Ask as a chat turn, or as text that the model continues."""
    max_new_tokens: Positive = 32
    """Longest reply."""


class Benchmark(Section):
    """One of lm-eval's tasks or groups: its own prompts, filters and metrics."""

    limit: Positive | None = 200
    """At most so many items, spread evenly; the tasks of a group share them. None: all."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Worked examples before each question. None: as the task has it."""
    fewshot: Literal["default", "first_n"] = "default"
    """The task's own choice of examples, or the same first ones for every question (faster)."""
    chat: bool = False
    """Ask through the chat template; lm-eval's published numbers are mostly without."""
    max_new_tokens: Positive | None = None
    """Longest reply where the task asks for one. None: as the task has it."""


class Evaluate(Section):
    """What is measured."""

    text: bool = True
    """Measure bits per byte of held-out and of general text."""
    suite: SuiteName | None = None
    """A ready set of benchmarks; what stands beside it in the recipe wins."""
    benchmarks: dict[str, Benchmark] = {}
    """lm-eval's tasks by name: `arc_easy`, `mmlu`, `gsm8k`."""
    data_dir: str | None = None
    """Folder with the benchmarks' data as jsonl. None: from the hub or its cache."""
    ifeval: IFEval | None = None
    """IFEval, for real models."""
    lilliput_rules: Positive | None = None
    """So many of Lilliput's format instructions."""
    questions: dict[str, Questions] = {}
    """Sets of questions about the new text, by name."""
    seq_len: Positive = 1024
    """Longest piece of text scored at once; longer documents are scored in pieces."""
    batch_size: Positive | None = None
    """Replies written side by side. None: as many as the hardware does well."""
    max_heldout_documents: Positive = 200
    """At most so many held-out documents are measured, the first ones."""


class Recipe(Section):
    """One study: a pair, a corpus, the arms to compare, and what to measure."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the run directory."""
    models: Models
    """The pair."""
    corpus: Corpus | None = None
    """The new text; needed by every arm that trains."""
    general: GeneralText = GeneralText()
    """The old text."""
    lora: Lora = Lora()
    """The adapter."""
    train: Train = Train()
    """Continual pre-training."""
    sft: Sft | None = None
    """Needed by the arm `cpt-sft`."""
    study: Study = Study()
    """The arms."""
    evaluate: Evaluate = Evaluate()
    """The measurements."""

    @model_validator(mode="after")
    def _arms_have_what_they_need(self) -> Recipe:
        on_instruct = {"instruct", "cpt-instruct"}
        others = [arm for arm in self.study.arms if arm not in on_instruct]
        if others and self.models.base is None:
            raise ValueError(f"study.arms {others} need models.base, which is not set")
        learning = [a for a in self.study.arms if a not in ("instruct", "base", "residual-only")]
        if learning and self.corpus is None:
            raise ValueError(f"study.arms {learning} need a section corpus, which is not there")
        if "cpt-sft" in self.study.arms and self.sft is None:
            raise ValueError("study.arms has cpt-sft, which needs a section sft")
        if self.train.tokens_per_step < self.train.seq_len * self.train.micro_batch_size:
            raise ValueError(
                "train.tokens_per_step is less than one forward pass "
                f"(seq_len x micro_batch_size = {self.train.seq_len * self.train.micro_batch_size})"
            )
        return self
