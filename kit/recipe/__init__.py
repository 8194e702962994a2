"""Recipes: what they may say, how a file is read, and how its errors are explained; no torch."""
