#!/bin/sh
# LongPPL as in the paper: "We sample 50 documents with the context length up to 32k tokens. We set the hyperparameters
# as alpha = 2, beta = -2, K = 4096" (section 4.1), d = 1024 (appendix A.1), Llama-3.1-8B as the small evaluator.
# The documents are those of the published script: tokenized with Llama-2's tokenizer, at least 16,384 tokens each.
# Usage: govreport.sh MODEL [EVALUATOR] [RUN]        Needs the hub, and a GPU that holds each model.
set -eu
model=$1 evaluator=${2:-meta-llama/Llama-3.1-8B} run=${3:-govreport}
longlens longppl hf:emozilla/govreport-test-tokenized --split test --tokenized-with NousResearch/Llama-2-7b-hf \
    --min-tokens 16384 --samples 50 --model "$model" --evaluator "$evaluator" \
    --context 4096 --stride 1024 --max-length 32768 --alpha 2 --beta -2 --dtype bfloat16 -o "$run"
