"""What a study would cost, before anything is loaded: memory, time, and what to watch; no torch."""
