# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Does residual transfer work? A first look in five minutes
#
# You have a chat model and new text that it should know. Training the chat model on raw text
# teaches it the text and costs it the chat. This notebook compares every way around that on
# **Lilliput**, a pair of very small models (a base and its instruct model) of a made-up world, so
# it runs on any machine, without a GPU and without a download.
#
# The numbers are real measurements. They are about very small models: what they say about yours,
# only a run on yours can tell (the last cell shows how).

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("kit") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "lora-kit"], check=True)

# %% [markdown]
# ## The recipe
#
# A recipe is one YAML file. `kit plan quickstart` prints what it will do and cost.

# %% tags=["parameters"]
changes: list[str] = []  # such as "train.tokens=50k" or "study.seeds=[0, 1, 2]"
folder = "runs/quickstart"

# %%
from kit import Results, find_recipe, preview, read_recipe, run_study

recipe = read_recipe(find_recipe("quickstart"), changes)
print("\n".join(preview(recipe).lines()))

# %% [markdown]
# ## Run it
#
# Eight arms, equal token budgets, one seed. Stop it whenever you like: the same cell goes on where
# it stopped.

# %%
run = run_study(recipe, folder)

# %% [markdown]
# ## What came out
#
# Every number has its 95 % interval, and every difference is measured on the same items. An
# interval that includes zero decides nothing.

# %%
Results(run)

# %% [markdown]
# ## Your own text and model
#
# On a free T4 with your text in `my_text/` (txt, md, jsonl or parquet):
#
# ```python
# recipe = read_recipe(find_recipe("qwen2.5-1.5b-t4"), ["corpus.sources=[my_text/]"])
# Results(run_study(recipe, "/content/drive/MyDrive/runs/mine"))
# ```
#
# With the run directory on a mounted Drive, a session that ends is no loss: run the cell again.
