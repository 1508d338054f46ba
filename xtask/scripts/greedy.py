"""Opens a checkpoint with transformers and compares what it generates with a golden.

usage: greedy.py MODEL GOLDEN.json

Says how many of the golden's tokens and first logits are other ones: 0, or the checkpoint is not the model that it should be.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model_path, golden_path = sys.argv[1:]
golden = json.loads(Path(golden_path).read_text())
prompt, expected = golden["prompt_ids"], golden["greedy_ids"]
model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(model_path)
ids = torch.tensor([prompt])
with torch.no_grad():
    found = model.generate(ids, do_sample=False, max_new_tokens=len(expected) - len(prompt))[0].tolist()
    logits = model(ids).logits[0, -1]
off = sum(a != b for a, b in zip(expected, found)) + abs(len(expected) - len(found))
# Elements that PEFT rounded twice are another one in the last bit; that shows in the third decimal at most.
near = torch.allclose(logits[:8], torch.tensor(golden["last_logits_first8"]), atol=2e-3)
off += not near or int(logits.argmax()) != golden["argmax"]
off += tokenizer.decode(found) != golden["text"]
print(f"{off} of {len(expected)} tokens differ")
