"""``longlens study reproduce extension``: position extrapolation, frozen and fine-tuned, with PPL and with tasks."""
