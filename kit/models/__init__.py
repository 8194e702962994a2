"""Checkpoints: where they come from, how they are loaded, how text becomes tokens and losses."""
