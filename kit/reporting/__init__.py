"""What came out of a run, from its rows alone: numbers with intervals, plots, one page; no torch.

lines.py        measurements -> one line per arm and variant, with intervals and differences
collect.py      a run directory -> a study
tables.py       lines -> tables, on the console and in Markdown
conclusions.py  a study -> plain sentences, where an interval decides
plots.py        a study -> SVG
page.py         a study -> report.md and report.html
"""
