"""What a recipe's text amounts to, counted without torch; and whether its files are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.data.sources import Document, DocumentSet, read_documents
from kit.data.splits import Split, split_documents
from kit.data.tokens import tokenize_documents
from kit.errors import CheckpointError, DataError
from kit.recipe.schema import Corpus, Recipe

BYTES_PER_TOKEN = 4.3
"""Of English text with a vocabulary of 50k to 150k words; other scripts need more tokens."""
COUNTED_BYTES = 20_000_000
"""Of a larger corpus a sample of this size is tokenised, spread evenly over its documents."""
_ELSEWHERE = ("hub:", "lilliput:", "pydoc:")


@dataclass(frozen=True, kw_only=True)
class CorpusCount:
    """The text that is trained on, as a plan counts it."""

    documents: int
    heldout_documents: int
    text_bytes: int
    """UTF-8 bytes of the training documents."""
    tokens: int
    """Of one pass over the training documents, ends of documents included."""
    how: str
    """How the tokens were counted."""


def missing_files(recipe: Recipe) -> list[str]:
    """`key: path` for every file or folder of text that the recipe names and that is not there.

    Checkpoints are not looked at here: a plan can do without them.
    """
    corpus = recipe.corpus
    named: list[tuple[str, Sequence[str]]] = [
        ("corpus.sources", corpus.sources if corpus else ()),
        ("corpus.heldout.sources", (corpus.heldout.sources if corpus else None) or ()),
        ("general.sources", recipe.general.sources),
        ("sft.sources", recipe.sft.sources if recipe.sft else ()),
    ]
    ifeval = recipe.evaluate.ifeval
    if ifeval is not None and ifeval.data is not None:
        named.append(("evaluate.ifeval.data", [ifeval.data]))
    for name, questions in recipe.evaluate.questions.items():
        named.append((f"evaluate.questions.{name}.sources", questions.sources))
    return [
        f"{key}: {source}"
        for key, sources in named
        for source in sources
        if not source.startswith(_ELSEWHERE) and not Path(source).expanduser().exists()
    ]


def check_files(recipe: Recipe) -> None:
    """Look for every text file that a recipe names.

    Raises:
        DataError: names all that are missing.
    """
    missing = missing_files(recipe)
    if missing:
        count = "a file is" if len(missing) == 1 else f"{len(missing)} files are"
        raise DataError(
            f"{count} not there: {'; '.join(missing)}",
            where=f"relative paths start at the working directory, {Path.cwd()}",
            fix=f"write the right path in the recipe, or override it: {_override(missing[0])}",
        )


def _override(missing: str) -> str:
    key = missing.partition(":")[0]
    return f"{key}='[PATH]'" if key.endswith("sources") else f"{key}=PATH"


def read_corpus(section: Corpus) -> tuple[DocumentSet, Split]:
    """Everything that a recipe's corpus names, and the same in two: to learn, and held out.

    Raises:
        DataError: the text cannot be read or split.
    """
    heldout = section.heldout
    found = read_documents(
        section.sources,
        text_field=section.text_field,
        date_field=section.date_field,
        from_date=section.from_date,
        bad_utf8=section.bad_utf8,
    )
    apart = None
    if heldout.sources:
        apart = read_documents(
            heldout.sources,
            text_field=section.text_field,
            date_field=section.date_field,
            bad_utf8=section.bad_utf8,
        ).documents
    return found, split_documents(
        found.documents,
        every=heldout.every,
        from_date=heldout.from_date,
        share=heldout.share,
        heldout_documents=apart,
    )


def count_corpus(recipe: Recipe, *, tokenizer_file: Path | None = None) -> CorpusCount | None:
    """Read and split the corpus as a run does, and count its tokens.

    Args:
        recipe: its section `corpus` is read.
        tokenizer_file: a `tokenizer.json`; None or unreadable: tokens are estimated from bytes.

    Returns:
        None without a corpus, and for one on the hub, which a plan does not download.

    Raises:
        DataError: files are missing, or the text cannot be read or split.
    """
    check_files(recipe)
    section = recipe.corpus
    if section is None:
        return None
    if any(s.startswith("hub:") for s in [*section.sources, *(section.heldout.sources or [])]):
        return None
    _, split = read_corpus(section)
    tokens, how = count_tokens(split.train, tokenizer_file=tokenizer_file)
    return CorpusCount(
        documents=len(split.train),
        heldout_documents=len(split.heldout),
        text_bytes=sum(len(document.text.encode()) for document in split.train),
        tokens=tokens + len(split.train),
        how=how,
    )


def count_tokens(documents: Sequence[Document], *, tokenizer_file: Path | None) -> tuple[int, str]:
    """Tokens of documents, and how they were counted.

    Args:
        documents: their texts alone; ends of documents are not counted.
        tokenizer_file: a `tokenizer.json`, or None.
    """
    sizes = [len(document.text.encode()) for document in documents]
    total = sum(sizes)
    tokenizer = _read_tokenizer(tokenizer_file)
    if tokenizer is None:
        why = f"estimated at {BYTES_PER_TOKEN} bytes per token: no tokenizer.json is here yet"
        return round(total / BYTES_PER_TOKEN), why
    every = max(1, -(-total // COUNTED_BYTES))
    sample, sample_bytes = documents[::every], sum(sizes[::every])
    counted = sum(len(ids) for ids in tokenize_documents(tokenizer, sample))
    if every == 1 or sample_bytes == 0:
        return counted, "counted with the tokenizer"
    scaled = round(counted * total / sample_bytes)
    return scaled, f"counted on every {every}th document and scaled by bytes"


def _read_tokenizer(path: Path | None) -> Any:
    if path is None:
        return None
    from tokenizers import Tokenizer

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"tokenizer.json cannot be read: {error}", where=str(path)) from None
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exceptions
        raise CheckpointError(f"tokenizer.json is damaged: {error}", where=str(path)) from None
