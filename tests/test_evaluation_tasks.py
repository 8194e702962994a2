"""Tasks turn replies and losses into rows that add up."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import pico_model, pico_tokenizer

from kit.data.questions import read_questions
from kit.errors import DataError, RecipeError
from kit.evaluation.engine import Engine
from kit.evaluation.generation import Generation
from kit.evaluation.instructions import LilliputRules
from kit.evaluation.measure import check_rows, chunks, measure, measure_chunk
from kit.evaluation.perplexity import TextTask, start_id
from kit.evaluation.questions import QuestionTask, contains, is_exactly, normalise, token_f1
from kit.evaluation.task import Verdict, prompt_hash, reply_rows
from kit.runs.records import ItemRow


@dataclass(frozen=True)
class Doc:
    id: str
    text: str


@dataclass(frozen=True)
class Asked:
    id: str
    question: str
    answers: tuple[str, ...]
    chance: float | None = None


DOCS = [Doc("a", "In the town of Mire."), Doc("b", "Zwei Bäche, 東京."), Doc("c", "x" * 90)]
QUESTIONS = [Asked("1", "Where?", ("Mire",)), Asked("2", "Who was it ", ("A",))]


def text_task(documents=DOCS, **options) -> TextTask:
    return TextTask("new_text", title="New text", role="new_text", documents=documents, **options)


def engine(model=None, **sizes) -> Engine:
    sizes = {"batch_size": 4, "max_length": 64, **sizes}
    return Engine(model or pico_model(), pico_tokenizer(chat=True), **sizes)


def nan_model():
    model = pico_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    return model


@pytest.fixture(scope="module")
def asked() -> Engine:
    return engine()


def test_bits_per_byte_by_hand(asked):
    rows = text_task(DOCS[:2]).run(asked, range(2))
    for doc, row in zip(DOCS, rows, strict=False):
        ids = [256, *asked.tokenizer(doc.text)["input_ids"]]
        with torch.no_grad():
            log_p = asked.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        bits = -sum(float(log_p[t - 1, ids[t]]) for t in range(1, len(ids))) / math.log(2)
        found, num_bytes = row.scores["bits_per_byte"]
        assert found == pytest.approx(bits, abs=1e-4)
        assert num_bytes == len(doc.text.encode())
        assert row.output_tokens == len(ids) - 1 == num_bytes
        assert row.status == "scored" and row.prompt_hash == prompt_hash(ids)


def test_a_uniform_model_needs_eight_bits_for_a_byte_of_256():
    model = pico_model(vocab_size=262)
    with torch.no_grad():
        model.model.norm.weight.zero_()
    [row] = text_task([Doc("a", "abc")]).run(engine(model), [0])
    bits, num_bytes = row.scores["bits_per_byte"]
    assert bits / num_bytes == pytest.approx(math.log2(262), abs=1e-5)


def test_start_id_is_what_the_tokenizer_itself_puts_before_text():
    from tokenizers.processors import TemplateProcessing

    tokenizer = pico_tokenizer(chat=True)
    assert start_id(tokenizer) == 256
    tokenizer.bos_token = "<|user|>"  # named, but not put before text
    assert start_id(tokenizer) == 256
    tokenizer.eos_token = "<|end|>"  # ends turns, not documents
    assert start_id(tokenizer) == 256
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|user|> $A", special_tokens=[("<|user|>", 258)]
    )
    assert start_id(tokenizer) == 258


def test_start_can_be_given(asked):
    [row] = text_task(DOCS[:1], start=258).run(asked, [0])
    assert row.prompt_hash == prompt_hash([258, *asked.tokenizer(DOCS[0].text)["input_ids"]])


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "no document"),
        ([Doc("a", "x"), Doc("a", "y")], "named 'a'"),
        ([Doc("a", "")], "empty"),
        ([Doc("a", "\ud800")], "UTF-8"),
    ],
)
def test_documents_that_cannot_be_measured_are_refused(documents, message):
    with pytest.raises(DataError, match=message):
        text_task(documents)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The  Town of\tMire.", "town of mire"),
        ("an apple, a pear!", "apple pear"),
        ("U.S.A.", "usa"),
        ("1,000", "1000"),
        ("twenty-one / 21", "twenty one 21"),
        ("Paris\u2014the city", "paris city"),
        ("\u201cMire\u201d", "mire"),
        ("STRASSE", "strasse"),
        ("Stra\u00dfe", "strasse"),
        ("\uff2d\uff49\uff52\uff45", "mire"),
        ("**bold** `code`", "bold code"),
        ("theatre another", "theatre another"),
        ("the", ""),
        ("", ""),
    ],
)
def test_normalise(text, wanted):
    assert normalise(text) == wanted


@pytest.mark.parametrize(
    ("reply", "answer", "inside", "exact"),
    [
        ("Mire", "Mire", True, True),
        (" the Mire.\n", "mire", True, True),
        ("She was born in Mire, they say.", "Mire", True, False),
        ("She was born in Miremouth.", "Mire", False, False),
        ("The answer is: 1911.", "1911", True, False),
        ("in 19112", "1911", False, False),
        ("red onion soup", "onion soup", True, False),
        ("onion and soup", "onion soup", False, False),
        ("", "Mire", False, False),
        ("Blood group A", "A", True, False),
        ("A.", "a", True, True),
        ("Blood group B", "A", False, False),
        ("\u9996\u90fd\u306f\u6771\u4eac\u3067\u3059", "\u6771\u4eac", True, False),
    ],
)
def test_contains_and_exactly(reply, answer, inside, exact):
    assert contains(reply, answer) is inside
    assert is_exactly(reply, answer) is exact


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "no question"),
        ([QUESTIONS[0], QUESTIONS[0]], "named '1'"),
        ([Asked("1", "?", ("...",))], "no answer"),
        ([Asked("1", "?", ())], "no answer"),
    ],
)
def test_questions_that_cannot_be_judged_are_refused(items, message):
    with pytest.raises(DataError, match=message):
        QuestionTask("questions/x", title="X", items=items)


def test_chance_is_known_where_every_question_says():
    half = [
        replace(item, chance=chance) for item, chance in zip(QUESTIONS, (0.5, 0.25), strict=True)
    ]
    assert QuestionTask("q", title="Q", items=half).info.chance == 0.375
    assert QuestionTask("q", title="Q", items=[half[0], QUESTIONS[1]]).info.chance is None


def test_lilliput_questions_can_be_asked(asked):
    items = read_questions(["lilliput:new-cloze"])[:5]
    task = QuestionTask("q", title="Q", items=items, form="plain", max_new_tokens=3)
    assert len(measure(asked, [task])) == 5
    assert 0 < task.info.chance < 0.5
    for number, item in enumerate(items):
        assert task._judge(number, f" {item.answers[0]}.").passed


def test_forms_of_a_question(asked):
    chat, plain = (
        QuestionTask("q", title="Q", items=QUESTIONS, form=form) for form in ("chat", "plain")
    )
    decode = asked.tokenizer.decode
    assert decode(chat._prompt(asked.tokenizer, "Who? ")) == "<|user|>Who? <|end|><|assistant|>"
    assert decode(plain._prompt(asked.tokenizer, "Who was it ")) == "Who was it"
    assert plain._judge(0, " Mire\nnever").scores == dict.fromkeys(
        ("contains", "exact", "f1"), (1.0, 1.0)
    )
    assert not plain._judge(0, "never\nMire").passed
    assert chat._judge(0, "It is\nMire").passed


@pytest.mark.parametrize(
    ("passed", "stopped", "status"),
    [
        (True, True, "correct"),
        (True, False, "correct"),
        (False, True, "wrong"),
        (False, False, "truncated"),
    ],
)
def test_status_of_a_reply(passed, stopped, status):
    reply = Generation(ids=(5, 6), text="so", stopped=stopped)
    scores = {"m": (float(passed), 1.0)}
    [row] = reply_rows(
        "t", ["i"], prompts=[[1, 2, 3]], replies=[reply], judge=lambda n, t: Verdict(passed, scores)
    )
    assert row == ItemRow(
        task="t",
        item="i",
        status=status,
        scores=scores,
        prompt_hash=prompt_hash([1, 2, 3]),
        prediction="so",
        prompt_tokens=3,
        output_tokens=2,
        note="" if stopped else "cut off after 2 tokens",
    )


def all_tasks():
    return [
        text_task(),
        LilliputRules(17, seed=0, max_new_tokens=5),
        QuestionTask("q/chat", title="Q", items=QUESTIONS, max_new_tokens=4),
        QuestionTask("q/plain", title="Q", items=QUESTIONS, form="plain", max_new_tokens=4),
    ]


def test_measure_gives_the_same_rows_for_any_batch_size():
    small, large = (measure(engine(batch_size=size), all_tasks()) for size in (1, 8))
    assert len(small) == 3 + 17 + 2 + 2
    for one, other in zip(small, large, strict=True):
        if one.status != "scored":
            assert one == other
            continue
        bits, num_bytes = one.scores["bits_per_byte"]
        assert other.scores["bits_per_byte"] == (pytest.approx(bits, abs=1e-4), num_bytes)
        assert replace(one, scores={}) == replace(other, scores={})


def test_rules_take_turns_and_are_named():
    names = LilliputRules(17, seed=0).item_ids
    assert len(set(names)) == 17
    assert names[0] == "capitals/0" and names[15] == "capitals/15"


def test_a_model_that_answers_right_is_correct(asked):
    from kit.models.lilliput.rules import RULES, instruction_items

    task = LilliputRules(15, seed=3)
    for number, item in enumerate(instruction_items("held", 15, 3)):
        if item.argument:
            assert task._judge(number, RULES[item.rule].render(item.argument)).passed
        assert not task._judge(number, "I do not know.").passed


def test_a_broken_model_gives_error_rows_and_no_exception():
    rows = measure(engine(nan_model()), all_tasks())
    assert len(rows) == 24
    for row in rows:
        assert row.status == "error" and row.scores == {} and "finite" in row.note


def test_progress_counts_the_items_of_a_chunk(asked):
    told = []
    for task in all_tasks():
        measure_chunk(asked, task, (0, 1), advance=lambda done, note="": told.append(done))
    assert sum(told) == 2 * len(all_tasks())


def test_two_tasks_of_one_name_are_refused(asked):
    with pytest.raises(RecipeError, match="new_text"):
        measure(asked, [text_task(), text_task()])


def test_rows_that_do_not_add_up_are_caught(asked):
    task = text_task(DOCS[:2])
    rows = task.run(asked, range(len(task.item_ids)))
    check_rows(task, range(len(rows)), rows)
    for wrong in (
        rows[:1],
        [rows[0], rows[0]],
        [rows[1], rows[0]],
        [replace(rows[0], status="correct"), rows[1]],
        [replace(rows[0], scores={}), rows[1]],
        [replace(rows[0], scores={"bits_per_byte": (math.nan, 1.0)}), rows[1]],
        [replace(rows[0], scores={"bits_per_byte": (1.0, 0.0)}), rows[1]],
    ):
        with pytest.raises(AssertionError):
            check_rows(task, range(len(task.item_ids)), wrong)


def test_an_unexpected_error_of_a_task_is_not_swallowed(asked):
    class Broken(TextTask):
        def run(self, engine, numbers, advance=None):
            raise ZeroDivisionError

    task = Broken("t", title="T", role="new_text", documents=DOCS)
    with pytest.raises(ZeroDivisionError):
        measure(asked, [task])


def test_chunks_are_all_items_and_depend_on_the_task_alone(asked):
    task = LilliputRules(300, seed=0)
    assert [len(part) for part in chunks(task)] == [128, 128, 44]
    assert [n for part in chunks(task) for n in part] == list(range(300))
    assert list(chunks(task, [5, 3])) == [(5, 3)]
    rows = measure_chunk(asked, text_task(), (2, 0))
    assert [row.item for row in rows] == ["c", "a"]


@pytest.mark.parametrize(
    ("reply", "answer", "f1"),
    [
        ("the grey town", "Grey Town", 1.0),
        ("a grey town far away", "grey town", 2 * (2 / 4) / (2 / 4 + 1)),
        ("nothing", "grey town", 0.0),
        ("東京都", "東京", 2 * (2 / 3) / (2 / 3 + 1)),
    ],
)
def test_f1_counts_words_in_common(reply, answer, f1):
    assert token_f1(reply, answer) == pytest.approx(f1)
