"""Training: one continual pre-training or one small instruction tuning, start to finish."""
