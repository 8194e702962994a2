"""Adapters: read, written, placed on a model, added up, grafted, extracted, merged."""
