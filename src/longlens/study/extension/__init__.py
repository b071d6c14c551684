"""``longlens study reproduce extension``: position extrapolation, frozen and fine-tuned, judged by more than PPL."""
