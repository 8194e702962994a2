"""Strategies: each arm as a list of stages, and the loop that runs them."""
