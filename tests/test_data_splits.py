"""What is measured was not trained on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.data.sources import Document
from kit.data.splits import split_documents
from kit.errors import DataError


def documents(texts, dates=None) -> list[Document]:
    return [
        Document(str(i), text, dates[i] if dates else None, "test") for i, text in enumerate(texts)
    ]


def ids(side) -> list[int]:
    return [int(document.id) for document in side]


def test_every_nth_document():
    split = split_documents(documents([f"t{i}" for i in range(20)]), every=8)
    assert ids(split.heldout) == [7, 15]
    assert ids(split.train) == [i for i in range(20) if i not in (7, 15)]


def test_from_a_date_on():
    dates = ["2026-01-01", "2026-01-31", "2026-02-01", "2026-02-01T10:00:00"]
    split = split_documents(documents("abcd", dates), from_date="2026-02-01")
    assert (ids(split.train), ids(split.heldout)) == ([0, 1], [2, 3])


def test_a_share_is_drawn_by_the_seed():
    texts = documents([f"t{i}" for i in range(100)])
    one, same, other = (split_documents(texts, share=0.1, seed=s) for s in (1, 1, 2))
    assert one == same and one.heldout != other.heldout
    assert len(one.heldout) == 10 and ids(one.heldout) == sorted(ids(one.heldout))
    assert len(split_documents(texts[:3], share=0.01).heldout) == 1


def test_documents_of_their_own_are_all_held_out():
    mine = [Document("h1", "kept", None, "h")]
    split = split_documents(documents(["a", "b"]), heldout_documents=mine)
    assert split.heldout == tuple(mine) and ids(split.train) == [0, 1]


def test_copies_of_held_out_texts_are_not_trained_on():
    texts = documents(["x", "same  text\n", "y", "same text", "other"])
    split = split_documents(texts, every=4)
    assert (ids(split.train), ids(split.heldout), split.duplicates) == ([0, 2, 4], [3], 1)
    assert "1 more left out" in split.lines()[0]
    own = split_documents(
        documents(["kept ", "b"]), heldout_documents=[Document("h", "kept", None, "h")]
    )
    assert ids(own.train) == [1] and own.duplicates == 1


@given(st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=30), st.integers(2, 5))
def test_no_text_is_on_both_sides(texts, every):
    try:
        split = split_documents(documents(texts), every=every)
    except DataError as error:
        assert "no document" in error.what
        return
    assert not {d.text for d in split.train} & {d.text for d in split.heldout}
    assert len(split.train) + len(split.heldout) + split.duplicates == len(texts)


@pytest.mark.parametrize(
    ("ways", "says"),
    [
        ({}, "not 0"),
        ({"every": 2, "share": 0.1}, "not 2"),
        ({"every": 1}, "2 or more"),
        ({"every": 9}, "no document to hold out"),
        ({"share": 0.0}, "above 0 and below 1"),
        ({"share": 1.0}, "above 0 and below 1"),
        ({"share": 0.99}, "no document to learn"),
        ({"from_date": "2026-01-01"}, "this one has none"),
        ({"from_date": "soon"}, "no ISO date"),
        ({"heldout_documents": []}, "no document to hold out"),
    ],
)
def test_refusals(ways, says):
    with pytest.raises(DataError, match=says) as caught:
        split_documents(documents("abc"), **ways)
    assert caught.value.where and caught.value.fix


def test_a_split_without_training_text_is_refused():
    with pytest.raises(DataError, match="no document to learn"):
        split_documents(documents(["same", "same"]), every=2)
