"""What users get wrong: one clear message, exit code 2, nothing written, nothing lost."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import pico_model, pico_tokenizer, save_pico
from typer.testing import CliRunner

KIT = [sys.executable, "-m", "kit"]


def kit(*arguments, cwd):
    """Run a command as the script would, in this process: importing torch anew takes seconds."""
    from kit.cli.app import app

    with contextlib.chdir(cwd):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def place(tmp_path, pico_pair):
    """A folder with a good recipe, its text, and a file that must survive."""
    text = "\n".join(f"Line {n} of the text that is to be learned." for n in range(200))
    for n in range(4):
        (tmp_path / f"part{n}.txt").write_text(f"Part {n}. {text}")
    sources = ", ".join(str(tmp_path / f"part{n}.txt") for n in range(4))
    (tmp_path / "recipe.yaml").write_text(f"""\
name: small
models: {{base: {pico_pair.base}, instruct: {pico_pair.instruct}, compute_dtype: float32}}
corpus: {{sources: [{sources}], heldout: {{every: 4}}}}
general: {{max_documents: 2}}
lora: {{rank: 4}}
train: {{tokens: 1000, seq_len: 128, tokens_per_step: 512}}
study: {{arms: [instruct, base, residual], cpt_weights: [1.0], seeds: [0]}}
evaluate: {{seq_len: 128, max_heldout_documents: 1}}
""")
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(place: Path, *arguments, says: str, code: int = 2):
    """Run a command that must be refused with one message and leave every file as it was."""
    before = snapshot(place)
    done = kit(*arguments, cwd=place)
    assert done.exit_code == code, done.output
    assert isinstance(done.exception, SystemExit), "an error came through, with its traceback"
    assert says in done.stderr, done.stderr
    assert done.stderr.count("kit: ") == 1
    assert snapshot(place) == before
    return done.stderr


def test_misspelt_key(place):
    said = refused(place, "run", "recipe.yaml", "train.learning_rat=1e-4", says="learning_rate")
    assert "train.learning_rat" in said


def test_wrong_types_all_at_once(place):
    text = (place / "recipe.yaml").read_text()
    text = text.replace("rank: 4", "rank: four").replace("seeds: [0]", "seeds: 0")
    (place / "recipe.yaml").write_text(text)
    said = refused(place, "run", "recipe.yaml", says="lora.rank")
    assert "study.seeds" in said and "recipe.yaml:5" in said


def test_missing_recipe(place):
    refused(place, "run", "recipy.yaml", says="recipe")


def test_missing_file(place):
    refused(place, "run", "recipe.yaml", "corpus.sources=[nowhere.txt]", says="nowhere.txt")


def test_empty_corpus(place):
    (place / "empty").mkdir()
    refused(place, "run", "recipe.yaml", "corpus.sources=[empty]", says="no document")


def test_binary_file_as_text(place):
    (place / "picture.txt").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR" * 9)
    refused(place, "run", "recipe.yaml", "corpus.sources=[picture.txt]", says="picture.txt")


def test_bad_utf8_is_named_by_file_and_byte_and_skipped_only_if_asked(place):
    (place / "more").mkdir()
    for n in range(4):
        shutil.copy(place / f"part{n}.txt", place / "more")
    (place / "more" / "latin.txt").write_bytes(b"twelve bytes" + "caf\u00e9".encode("latin-1"))
    said = refused(place, "run", "recipe.yaml", "corpus.sources=[more]", says="latin.txt")
    assert "15" in said
    done = kit("run", "recipe.yaml", "corpus.sources=[more]", "corpus.bad_utf8=skip", cwd=place)
    assert done.exit_code == 0, done.output
    assert "left out: 1" in done.stdout


def test_corpus_shorter_than_a_block(place):
    for n in range(4):
        (place / f"part{n}.txt").write_text(f"Short text {n}.")
    refused(place, "run", "recipe.yaml", says="less than one block")


def test_no_pair(place):
    other = save_pico(place / "other", pico_model(hidden_size=32), chat=False)
    said = refused(
        place, "run", "recipe.yaml", f"models.base={other}", says="no base and instruct pair"
    )
    assert "(262, 32)" in said
    refused(place, "pair", other, place / "other2", says="no such folder")


def peft_adapter(place: Path, base: Path, name: str, **options) -> Path:
    """An adapter as PEFT writes it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, config).save_pretrained(place / name)
    return place / name


@pytest.mark.parametrize(
    ("name", "options"),
    [("dora", {"use_dora": True}), ("pissa", {"init_lora_weights": "pissa"})],
)
def test_adapters_that_are_no_plain_delta(place, pico_pair, name, options):
    adapter = peft_adapter(place, pico_pair.base, name, **options)
    says = {"dora": "DoRA", "pissa": "pissa"}[name]
    stacks = ("instruct", f"instruct + {adapter}")
    refused(place, "evaluate", *stacks, "--recipe", "recipe.yaml", says=says)


def test_adapter_whose_keys_do_not_match(place):
    deeper = save_pico(place / "deeper", pico_model(num_hidden_layers=3), chat=False)
    adapter = peft_adapter(place, deeper, "adapter")
    stacks = ("instruct", f"instruct + {adapter}")
    said = refused(place, "evaluate", *stacks, "--recipe", "recipe.yaml", says="layers.2")
    assert "out" not in os.listdir(place), said


def test_pad_is_eos_and_nothing_else_could_fill_up(place):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = save_pico(place / "bare", pico_model(), chat=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.add_special_tokens(["</s>"])
    bare = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>")
    bare.chat_template = pico_tokenizer(chat=True).chat_template
    bare.save_pretrained(folder)
    refused(
        place,
        "run",
        "recipe.yaml",
        f"models.base={folder}",
        f"models.instruct={folder}",
        says="pad",
    )


def test_instruct_without_a_chat_template(place, pico_pair):
    refused(place, "run", "recipe.yaml", f"models.instruct={pico_pair.base}", says="chat template")


def test_pickled_checkpoint(place, pico_pair):
    shutil.copytree(pico_pair.base, place / "pickled")
    (place / "pickled" / "model.safetensors").rename(place / "pickled" / "pytorch_model.bin")
    refused(place, "run", "recipe.yaml", f"models.base={place / 'pickled'}", says="pickle")


def test_run_directory_of_another_recipe(place):
    done = kit("run", "recipe.yaml", "study.arms=[instruct]", "--out", "run", cwd=place)
    assert done.exit_code == 0, done.output
    refused(place, "run", "recipe.yaml", "--out", "run", says="another recipe")


def limit_file_size():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, 250_000))


def test_no_space_left(place):
    """Files may not grow beyond 250 kB: the adapter cannot be written, what was there stays."""
    command = [*KIT, "run", "recipe.yaml", "lora.rank=64", "--out", "run"]
    done = subprocess.run(
        command, cwd=place, preexec_fn=limit_file_size, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no room" in done.stderr and "Traceback" not in done.stderr
    assert (place / "run" / "stages" / "text" / "done.json").exists(), done.stderr
    assert not (place / "run" / "stages" / "cpt-base-s0").exists()
    again = kit("run", "recipe.yaml", "lora.rank=64", "--out", "run", cwd=place)
    assert again.exit_code == 0, again.output
    assert "stages were done already" in again.stdout


def started(place: Path, marker: str) -> subprocess.Popen:
    """A run that has got as far as a finished stage."""
    process = subprocess.Popen(
        [*KIT, "run", "recipe.yaml", "train.tokens=200k", "--out", "run"],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (place / "run" / "stages" / marker / "done.json").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_two_processes_in_one_run_directory(place):
    first = started(place, "text")
    try:
        second = kit("run", "recipe.yaml", "train.tokens=200k", "--out", "run", cwd=place)
        assert second.exit_code == 2 and isinstance(second.exception, SystemExit)
        assert "another process" in second.stderr
        assert first.poll() is None, "the first one goes on"
    finally:
        first.kill()
        first.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c(place, number):
    process = started(place, "text")
    time.sleep(1.0)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "finished stages are kept" in said and "Traceback" not in said
    assert (place / "run" / "stages" / "text" / "done.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--tasks", "arc_eazy"], "arc_easy"),
        (["--tasks", "arc_easy", "--data-dir", "nowhere"], "arc/arc_easy.jsonl"),
        ([], "--tasks"),
        (["--limit", "5"], "--tasks"),
        (["--tasks", "arc_easy", "--suite", "quick"], "one of the two"),
    ],
)
def test_evaluations_that_cannot_be(place, pico_pair, arguments, says):
    refused(place, "evaluate", pico_pair.instruct, *arguments, says=says)


def test_a_suite_that_is_not_there(place, pico_pair):
    done = kit("evaluate", pico_pair.instruct, "--suite", "quik", cwd=place)
    assert done.exit_code == 2
    assert "quick" in done.stderr


def test_there_is_nothing_to_go_on_with(place):
    refused(place, "evaluate", "--resume", "--out", "nothing", says="run.json")


def test_an_adapter_of_another_base(place, pico_pair):
    from kit.adapters.tensors import Sidecar, write_sidecar

    adapter = peft_adapter(place, pico_pair.base, "stranger")
    write_sidecar(
        adapter, Sidecar(base_name="another/base", base_fingerprint="0" * 16, quantization="nf4")
    )
    stacks = ("instruct", f"instruct + {adapter}")
    refused(place, "evaluate", *stacks, "--recipe", "recipe.yaml", says="another/base")
