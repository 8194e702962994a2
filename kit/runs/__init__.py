"""Run directories: stages with done-markers, typed rows, and where everything came from."""
