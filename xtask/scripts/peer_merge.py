"""Merges an adapter as people do today: transformers loads the model in its own dtype, PEFT adds the adapter, both are saved.

usage: peer_merge.py BASE ADAPTER OUT
"""

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, adapter, out = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), adapter)
model.merge_and_unload().save_pretrained(out, max_shard_size="2GB")
AutoTokenizer.from_pretrained(base).save_pretrained(out)
