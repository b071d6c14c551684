"""Does LongPPL follow long-context scores over models, where perplexity does not?"""
