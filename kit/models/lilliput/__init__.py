"""Lilliput: a base and an instruct Llama of a few million parameters over a made-up world.

The pair is small enough for two CPU cores and still lets the kit's question be asked. The base
model has read documents about invented people and recalls their facts, but follows no
instructions. The instruct model was tuned from it on chats about *other* people, follows format
instructions and answers questions. A third group, the new people, occurs in no training text at
all: documents about them are the corpus to learn.

    people.py   who lives in the world: three disjoint groups
    world.py    documents, cloze items, questions and chats about them
    rules.py    format instructions with checkers that are pure code
    base/, instruct/   the two checkpoints: bf16 safetensors, tokenizer, configuration

``bench/train_lilliput.py`` is the script that trained them; its ``training.log`` and
``scores.json`` lie beside this file. Importing this package loads no torch.
"""

from pathlib import Path

__all__ = ["BASE", "INSTRUCT"]

BASE: Path = Path(__file__).parent / "base"
"""Folder of the base checkpoint; its tokenizer has no chat template."""

INSTRUCT: Path = Path(__file__).parent / "instruct"
"""Folder of the instruct checkpoint; its tokenizer has the chat template."""
