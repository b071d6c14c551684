"""Experiment: does LongPPL track long-context scores across models, and perplexity not?"""
