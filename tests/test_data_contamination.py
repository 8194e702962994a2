"""Items that the training text holds, planted and found; others are left alone."""

from __future__ import annotations

from kit.data.contamination import checkable, overlaps

SENTENCE = "The miller of Mire keeps nine grey geese and sells their feathers every second week."


def test_thirteen_words_in_a_row_count_and_twelve_do_not():
    words = SENTENCE.split()
    thirteen, twelve = " ".join(words[1:14]), " ".join(words[1:13])
    items = {"t": [f"Who said: {thirteen}?", f"Who said: {twelve} never? Nobody did it today."]}
    assert overlaps([f"Some text. {SENTENCE} More."], items) == {"t": [0]}


def test_case_and_punctuation_do_not_hide_it_and_documents_are_not_joined():
    shouted = SENTENCE.upper().replace(" ", ", ")
    assert overlaps([shouted], {"t": [SENTENCE]}) == {"t": [0]}
    half = SENTENCE.split()
    assert overlaps([" ".join(half[:8]), " ".join(half[8:])], {"t": [SENTENCE]}) == {"t": []}


def test_short_items_are_compared_whole_and_very_short_ones_not_at_all():
    eight = "What do nine grey geese eat in Mire"
    assert checkable(eight) and not checkable("Who keeps geese?")
    items = {"t": [eight, "Who keeps geese?"], "u": []}
    text = f"{eight}? Who keeps geese?"
    assert overlaps([text], items) == {"t": [0], "u": []}


def test_scripts_without_blanks_are_compared_by_characters():
    text = "東京は日本の首都であり世界最大の都市圏のひとつである"
    assert overlaps([f"昔、{text}。"], {"t": [text]}) == {"t": [0]}
