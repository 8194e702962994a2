"""Train Lilliput: tokenizer, base model, instruct model; then score both and write them.

    python bench/train_lilliput.py --out kit/models/lilliput       # 20 minutes on one busy core
    python bench/train_lilliput.py --out /tmp/lilliput --smoke     # the same path in under a minute

    documents --> base       next-token loss on every token, one EOS after each document
    chats + documents --> instruct   starts from base; loss on the assistant's turns of the chats,
                             on every token of the documents (about sft people: without them the
                             facts fade)

Seeded throughout. The folders are written under a temporary name and renamed, then come
``training.log`` and ``scores.json``. The scores are taken from the files as written (bf16).
"""

import argparse
import json
import logging
import platform
import random
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.lilliput_loop import IGNORE, Example, batches, train
from bench.lilliput_scores import score_pair
from kit.models.lilliput.rules import RULES
from kit.models.lilliput.world import chat_rows, documents, people

EOS, PAD, USER, ASSISTANT, END = "<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '<|end|>\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' }}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ raise_exception('Lilliput knows the roles user and assistant only') }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

log = logging.getLogger("lilliput")


@dataclass(frozen=True)
class Plan:
    """Sizes and rates of one training; the defaults made the shipped weights."""

    vocab_size: int = 1536
    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 3
    num_heads: int = 4
    seq_len: int = 256
    batch_rows: int = 8
    base_steps: int = 3200
    base_learning_rate: float = 2.5e-3
    documents_per_person: int = 20
    """Old documents are written anew for each pass over the people, this many each time."""
    sft_steps: int = 2000
    sft_learning_rate: float = 8e-4
    sft_documents_share: float = 0.4
    """Share of the SFT examples that are documents."""
    seed: int = 7
    threads: int = 1
    score_items: int = 600
    """Items per score."""
    compile: bool = True


SMOKE = Plan(
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=2,
    base_steps=30,
    documents_per_person=1,
    sft_steps=20,
    score_items=32,
    compile=False,
)


def train_tokenizer(plan: Plan) -> PreTrainedTokenizerFast:
    """A byte-level BPE over old documents and the wordings of the instructions."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=plan.vocab_size,
        special_tokens=[EOS, PAD, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [d.text for d in documents("old", per_person=2, seed=plan.seed)]
    wordings = [w for rule in RULES.values() for w in (*rule.wordings, *rule.fact_wordings)]
    texts += wordings * 30
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, END],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def document_example(text: str, tokenizer: PreTrainedTokenizerFast) -> Example:
    """A document with its EOS; loss on every token."""
    ids = [*tokenizer.encode(text), tokenizer.eos_token_id]
    return Example(ids, ids)


def chat_example(row: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast) -> Example:
    """A chat in the template; loss on the assistant's words and its end token."""
    encoded = cast(
        dict[str, list[int]],
        tokenizer.apply_chat_template(
            row,
            chat_template=CHAT_TEMPLATE,
            return_dict=True,
            return_assistant_tokens_mask=True,
        ),
    )
    ids, mask = encoded["input_ids"], encoded["assistant_masks"]
    labels = [i if keep else IGNORE for i, keep in zip(ids, mask, strict=True)]
    return Example(ids, labels)


def base_passes(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> Iterator[list[Example]]:
    """Passes over old documents, written anew each time."""
    seed = plan.seed
    while True:
        seed += 1
        texts = documents("old", per_person=plan.documents_per_person, seed=seed)
        yield [document_example(d.text, tokenizer) for d in texts]


def sft_passes(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> Iterator[list[Example]]:
    """Passes over chats and documents, mixed; held people are in neither."""
    rng = random.Random(plan.seed)
    held = {person.name for person in people("held")}
    seed = plan.seed
    while True:
        seed += 1
        mixed = [chat_example(row, tokenizer) for row in chat_rows(seed, 8000)]
        texts = documents("old", per_person=24, seed=seed + 1000)
        texts = [d for d in texts if not held.intersection(d.people)]
        wanted = len(mixed) * plan.sft_documents_share / (1 - plan.sft_documents_share)
        mixed += [document_example(d.text, tokenizer) for d in texts[: round(wanted)]]
        rng.shuffle(mixed)
        yield mixed


def write_folder(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Model (bf16) and tokenizer under a temporary name, then renamed."""
    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = model.generation_config
    copy.bfloat16()
    copy.save_pretrained(temporary)
    # Where it was read from is nobody else's business, and would change the file.
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(temporary)
    # save_pretrained makes the weights readable by their owner only; they travel in a package.
    (temporary / "model.safetensors").chmod(0o644)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def new_model(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with random weights; chat tokens get rows, but no document contains them."""
    config = LlamaConfig(
        vocab_size=plan.vocab_size,
        hidden_size=plan.hidden_size,
        intermediate_size=plan.intermediate_size,
        num_hidden_layers=plan.num_layers,
        num_attention_heads=plan.num_heads,
        num_key_value_heads=plan.num_heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train_phase(plan: Plan, out: Path, phase: str) -> float:
    """Train one of the two models and write its folder.

    Args:
        plan: sizes and rates.
        out: holds both folders; the instruct model starts from the base model as written there.
        phase: ``base`` or ``instruct``.

    Returns:
        Wall time in seconds.
    """
    started = time.monotonic()
    torch.manual_seed(plan.seed)
    if phase == "base":
        tokenizer = train_tokenizer(plan)
        model = new_model(plan, tokenizer)
        log.info("parameters %d, vocabulary %d", model.num_parameters(), len(tokenizer))
        passes = base_passes(plan, tokenizer)
        num_steps, rate = plan.base_steps, plan.base_learning_rate
    else:
        tokenizer = cast(PreTrainedTokenizerFast, AutoTokenizer.from_pretrained(out / "base"))
        model = LlamaForCausalLM.from_pretrained(out / "base", dtype=torch.float32)
        passes = sft_passes(plan, tokenizer)
        num_steps, rate = plan.sft_steps, plan.sft_learning_rate
    data = batches(
        passes,
        seq_len=plan.seq_len,
        batch_rows=plan.batch_rows,
        pad_id=cast(int, tokenizer.pad_token_id),
        seed=plan.seed,
    )
    train(
        model,
        data,
        num_steps=num_steps,
        learning_rate=rate,
        use_compile=plan.compile,
        name=phase,
    )
    if phase == "instruct":
        tokenizer.chat_template = CHAT_TEMPLATE
        end = tokenizer.convert_tokens_to_ids(END)
        model.config.eos_token_id = end
        model.generation_config.eos_token_id = end
    write_folder(model, tokenizer, out / phase)
    seconds = round(time.monotonic() - started, 1)
    log.info("%s took %.1f s of wall time", phase, seconds)
    return seconds


def write_scores(plan: Plan, out: Path, seconds: dict[str, float]) -> None:
    """Score the files as written and put everything about the run into ``scores.json``."""
    started = time.monotonic()
    scores = score_pair(out / "base", out / "instruct", plan.score_items)
    seconds["scoring"] = round(time.monotonic() - started, 1)
    record = {
        "schema_version": 1,
        "scores": scores,
        "plan": asdict(plan),
        "wall_time_seconds": seconds,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    temporary = out / "scores.json.partial"
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    temporary.rename(out / "scores.json")


def base_seconds(out: Path) -> dict[str, float]:
    """Wall time of the base model that lies in a folder, from its log."""
    text = (out / "training.log").read_text(encoding="utf-8")
    found = re.search(r"^base took ([\d.]+) s", text, re.M)
    return {"base": float(found[1])} if found else {}


def main() -> None:
    """Command line: see the module docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--smoke", action="store_true", help="toy size, under a minute")
    parser.add_argument(
        "--reuse-base", action="store_true", help="keep the base model that lies in the folder"
    )
    options = parser.parse_args()
    plan = SMOKE if options.smoke else Plan()
    options.out.mkdir(parents=True, exist_ok=True)
    # The log of a base model that is kept stays: the new lines go below it.
    earlier = base_seconds(options.out) if options.reuse_base else {}
    mode = "a" if options.reuse_base else "w"
    handlers: list[logging.Handler] = [
        logging.FileHandler(options.out / "training.log", mode=mode),
        logging.StreamHandler(),
    ]
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers)
    torch.set_num_threads(plan.threads)
    log.info("plan %s", plan)
    phases = ["instruct"] if options.reuse_base else ["base", "instruct"]
    seconds = earlier | {phase: train_phase(plan, options.out, phase) for phase in phases}
    write_scores(plan, options.out, seconds)
    log.info("wall time in seconds: %s", seconds)


if __name__ == "__main__":
    main()
