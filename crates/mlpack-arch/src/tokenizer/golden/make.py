#!/usr/bin/env python3
"""Makes expected.json: what llama.cpp b11434's converter writes for every case of cases.json.

usage: PYTHONHASHSEED=0 HF_HUB_OFFLINE=1 python make.py LLAMA_CPP_SOURCE_TREE
needs: the tree's conversion/ and gguf-py/, transformers 5.23.0, tokenizers, sentencepiece, torch

Each case names a reader and the files of a model folder. "@vocab" in a BPE model stands for the 256 characters of the
byte alphabet in code point order, the merges of cases.json, and "extra"; "@pieces" is a SentencePiece model. Arrays of
more than 64 values are stored as the sha256 of their JSON. tokenizer.chat_templates is sorted: its order is that of a set.
"""
import hashlib
import json
import logging
import pathlib
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
FIXTURES = HERE.parents[4] / "fixtures" / "legal-qa"
tree = pathlib.Path(sys.argv[1])
sys.path[:0] = [str(tree), str(tree / "gguf-py")]
logging.disable(logging.CRITICAL)

import gguf
from conversion.base import TextModel
from conversion.llama import LlamaModel
from conversion.qwen import Qwen2Model
from gguf.vocab import bytes_to_unicode
from sentencepiece import sentencepiece_model_pb2

CASES = json.loads((HERE / "cases.json").read_text(encoding="utf-8"))
READERS = {"llama": LlamaModel, "qwen": Qwen2Model, "bpe": TextModel}


def expand_bpe(model):
    style, extra = model.pop("@vocab"), model.pop("extra", [])
    merges = [m.split(" ") for m in CASES["merges"]]
    tokens = sorted(bytes_to_unicode().values()) + ["".join(m) for m in merges] + extra
    model["vocab"] = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    model["merges"] = {"pairs": merges, "lines": CASES["merges"], "none": []}[style] + model.pop("extra_merges", [])
    return model


def sentencepiece_model(spec):
    proto = sentencepiece_model_pb2.ModelProto()
    proto.trainer_spec.byte_fallback = spec["byte_fallback"]
    pieces = list(spec["@pieces"])
    if spec["byte_fallback"]:
        pieces += [[f"<0x{b:02X}>", 0.0, 6] for b in range(256)]
    for text, score, kind in pieces:
        piece = proto.pieces.add()
        piece.piece, piece.score, piece.type = text, score, kind
    return proto.SerializeToString()


def write_folder(case, folder):
    for name in case.get("copy", []):
        (folder / pathlib.Path(name).name).write_bytes((FIXTURES / name).read_bytes())
    for name, content in case.get("files", {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict) and "@pieces" in content:
            path.write_bytes(sentencepiece_model(content))
        elif isinstance(content, str):
            path.write_bytes(content.encode())
        else:
            if "@vocab" in content.get("model", {}):
                content = {**content, "model": expand_bpe(dict(content["model"]))}
            path.write_text(json.dumps(content), encoding="utf-8")


def convert(case, folder):
    cls = READERS[case["reader"]]
    model = object.__new__(cls)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model.dir_model = folder
    model.hparams = {**config, **config.get("text_config", {})}
    model.origin_hf_arch, model.is_mistral_format = None, False
    model.gguf_writer = gguf.GGUFWriter(path=None, arch="llama")
    model.gguf_writer.kv_data[0].clear()
    seen = {}

    class Recorder:
        """Keeps the ids of the check text on their way to the hash."""

        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def encode(self, text):
            ids = self.tokenizer.encode(text)
            seen["hash"] = hashlib.sha256(str(ids).encode()).hexdigest()
            return ids

    def pre(tokenizer):
        try:
            return cls.get_vocab_base_pre(model, Recorder(tokenizer))
        except NotImplementedError:
            return case["pre"]

    model.get_vocab_base_pre = pre
    model.set_vocab()
    return [plain(key, value) for key, value in model.gguf_writer.kv_data[0].items()], seen.get("hash")


def plain(key, value):
    types, content = [value.type.name], value.value
    if value.type == gguf.GGUFValueType.ARRAY:
        types.append(gguf.GGUFValueType.get_type(content[0]).name)
        convert = {"STRING": lambda x: x.decode() if isinstance(x, bytes) else x, "FLOAT32": float, "INT32": int}
        content = [convert[types[1]](x) for x in content]
        if key == "tokenizer.chat_templates":
            content.sort()
        if len(content) > 64:
            content = "sha256:" + hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()
    scalar = {"BOOL": bool, "UINT32": int}.get(types[0], lambda x: x)
    return [key, types, scalar(content)]


expected = {}
for case in CASES["cases"]:
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_folder(case, folder)
        keys, check = convert(case, folder)
        expected[case["name"]] = {"keys": keys, "hash": check}
        print(case["name"], len(keys), check)
lines = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in expected.items()]
(HERE / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
