"""Text in, token blocks out, with every token accounted for.

    sources.py     files, folders, the hub -> documents
    rows.py        what lies in one local file, row by row
    splits.py      documents -> training and held-out documents
    tokens.py      documents -> token ids
    packing.py     token ids -> blocks
    ledger.py      the count of it all, and its proof
    store.py       blocks on disk, memory-mapped
    budget.py      which blocks a budget of tokens draws, and in which order
    batches.py     blocks -> tensors (the only module here that needs torch)
    chats.py       conversations to tune on
    questions.py   questions to ask

Importing this package loads neither torch nor datasets.
"""
