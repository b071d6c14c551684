"""Experiment: does the perplexity of answer tokens follow accuracy? The paper's figures 2 and 4(b), table 9."""
