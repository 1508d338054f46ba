#!/usr/bin/env python3
"""Prints, as JSON, the token ids that llama.cpp gives to the texts of ../data/probes.json with a GGUF vocabulary.

usage: python encode.py LIBLLAMA_SO FILE.gguf
"""
import ctypes
import json
import pathlib
import sys


class Params(ctypes.Structure):
    """llama_model_params of b11434."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("devices", "overrides")]
    _fields_ += [(name, ctypes.c_int32) for name in ("layers", "split", "load", "lazy", "main")]
    _fields_ += [(name, ctypes.c_void_p) for name in ("tensor_split", "callback", "data", "kv")]
    _fields_ += [(name, ctypes.c_bool) for name in ("vocab_only", "check", "extra", "no_host", "no_alloc", "mtp")]


lib = ctypes.CDLL(sys.argv[1])
lib.llama_model_default_params.restype = Params
lib.llama_model_load_from_file.restype = ctypes.c_void_p
lib.llama_model_load_from_file.argtypes = [ctypes.c_char_p, Params]
lib.llama_model_get_vocab.restype = ctypes.c_void_p
lib.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
lib.llama_tokenize.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool, ctypes.c_bool]
quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
lib.llama_log_set(quiet, None)
lib.llama_backend_init()
params = lib.llama_model_default_params()
params.vocab_only = True
model = lib.llama_model_load_from_file(sys.argv[2].encode(), params)
if not model:
    sys.exit("not loaded")
vocab = lib.llama_model_get_vocab(model)
probes = pathlib.Path(__file__).resolve().parent.parent / "data" / "probes.json"
out = []
for text in json.loads(probes.read_text(encoding="utf-8")):
    raw, ids = text.encode(), (ctypes.c_int32 * 4096)()
    count = lib.llama_tokenize(vocab, raw, len(raw), ids, 4096, False, True)
    out.append(list(ids[:count]))
print(json.dumps(out))
