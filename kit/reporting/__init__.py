"""What came out of a run, from its rows alone: numbers with intervals, plots, one page; no torch.

lines.py        measurements -> one line per arm and variant, with intervals and differences
collect.py      a run directory -> a study
conclusions.py  a study -> plain sentences, where an interval decides
tables.py       lines -> tables, on the console and in Markdown
plots.py        a study -> SVG; canvas.py is its style, labels.py keeps labels apart
facts.py        what was asked, trained and counted
samples.py      some items with every arm's reply
page.py         a study -> report.md and report.html (page.html.jinja)
show.py         a study on a terminal or in a notebook
wording.py      how a number and a name are written
"""
