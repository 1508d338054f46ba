#!/usr/bin/env python3
"""Makes expected.json: what llama.cpp b11434's converter writes for every case of cases.json.

usage: PYTHONHASHSEED=0 HF_HUB_OFFLINE=1 python make.py LLAMA_CPP_SOURCE_TREE LIBLLAMA_SO
needs: the tree's conversion/ and gguf-py/, transformers 5.23.0, tokenizers, sentencepiece, mistral-common, tiktoken, torch

Each case names a reader and the files of a model folder. "@vocab" in a BPE model stands for the 256 characters of the
byte alphabet in code point order, the merges of cases.json, and "extra"; "@pieces" is a SentencePiece model; "@tekken"
and "@ranks" are the tokens after the 256 bytes of a tekken.json and of a .tiktoken file. Arrays of more than 64 values
are stored as the sha256 of their JSON. "ids" is that of the token ids of the probes, by llama.cpp itself (encode.py);
null where it does not load the vocabulary or finds no unknown token. tokenizer.chat_templates is sorted: its order is that of a set.
"""
import base64
import hashlib
import json
import logging
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
FIXTURES = HERE.parents[4] / "fixtures" / "legal-qa"
tree = pathlib.Path(sys.argv[1])
sys.path[:0] = [str(tree), str(tree / "gguf-py")]
logging.disable(logging.CRITICAL)

import gguf
import tiktoken
import transformers
from conversion import baichuan, bert, chatglm, ernie, gemma, glm, hunyuan, internlm, llama, mamba, phi, qwen, stablelm, t5
from conversion.base import ModelBase, TextModel
from gguf.vocab import bytes_to_unicode
from sentencepiece import sentencepiece_model_pb2

CASES = json.loads((HERE / "cases.json").read_text(encoding="utf-8"))
READERS = {
    "llama": llama.LlamaModel, "qwen": qwen.Qwen2Model, "bpe": TextModel, "sentencepiece": baichuan.BaichuanModel,
    "gemma": gemma.GemmaModel, "gemma2": gemma.Gemma2Model, "gemma3": gemma.Gemma3Model, "phi3": phi.Phi3MiniModel,
    "glm4": glm.Glm4Model, "glm4_moe": glm.Glm4MoeModel, "chatglm": chatglm.ChatGLMModel,
    "stablelm": stablelm.StableLMModel, "mamba": mamba.MambaModel, "internlm2": internlm.InternLM2Model,
    "hunyuan_dense": hunyuan.HunYuanModel, "ernie4_5": ernie.Ernie4_5Model, "bert": bert.BertModel,
    "roberta": bert.RobertaModel, "xlm_roberta": bert.XLMRobertaModel, "tiktoken": qwen.QwenModel,
    "nomic_bert": bert.NomicBertModel, "modern_bert": bert.ModernBertModel, "t5": t5.T5Model,
}


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
    if "model_type" in spec:
        proto.trainer_spec.model_type = spec["model_type"]
    normalizer = dict(spec.get("normalizer", {}))
    if charsmap := normalizer.pop("charsmap", ""):
        proto.normalizer_spec.precompiled_charsmap = base64.b64decode(charsmap)
    for key, value in normalizer.items():
        setattr(proto.normalizer_spec, key, value)
    pieces = list(spec["@pieces"])
    if spec["byte_fallback"]:
        pieces += [[f"<0x{b:02X}>", 0.0, 6] for b in range(256)]
    for text, score, kind in pieces:
        piece = proto.pieces.add()
        piece.piece, piece.score, piece.type = text, score, kind
    return proto.SerializeToString()


def ranked(tokens):
    return [bytes([i]) for i in range(256)] + [t.encode() for t in tokens]


def tekken(spec):
    tokens = [
        {"rank": i, "token_bytes": base64.b64encode(t).decode(), "token_str": None} for i, t in enumerate(ranked(spec["@tekken"]))
    ]
    return {**{k: v for k, v in spec.items() if k != "@tekken"}, "vocab": tokens}


class QwenTokenizer:
    """What tokenization_qwen.py of Qwen 1 makes of qwen.tiktoken."""

    def __init__(self, folder):
        lines = (folder / "qwen.tiktoken").read_bytes().splitlines()
        self.mergeable_ranks = {base64.b64decode(t): int(r) for t, r in (line.split() for line in lines)}
        names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + [f"<|extra_{i}|>" for i in range(205)]
        self.special_tokens = {name: len(self.mergeable_ranks) + i for i, name in enumerate(names)}
        regex = transformers.models.qwen2.tokenization_qwen2.PRETOKENIZE_REGEX
        self.encoding = tiktoken.Encoding("qwen", pat_str=regex, mergeable_ranks=self.mergeable_ranks, special_tokens={})

    def get_vocab(self):
        return {**self.mergeable_ranks, **self.special_tokens}

    def encode(self, text):
        return self.encoding.encode_ordinary(text)


def write_folder(case, folder):
    for name in case.get("copy", []):
        (folder / pathlib.Path(name).name).write_bytes((FIXTURES / name).read_bytes())
    for name, content in case.get("files", {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict) and "@pieces" in content:
            path.write_bytes(sentencepiece_model(content))
        elif isinstance(content, dict) and "@ranks" in content:
            lines = [base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(ranked(content["@ranks"]))]
            path.write_bytes(b"".join(lines))
        elif isinstance(content, dict) and "@tekken" in content:
            path.write_text(json.dumps(tekken(content)), encoding="utf-8")
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
    experts = config.get("moe_every_n_layers")
    model.model_arch = gguf.MODEL_ARCH.NOMIC_BERT_MOE if experts else gguf.MODEL_ARCH.BERT
    if case["reader"] == "nomic_bert":
        model._tokenizer_is_xlmroberta = cls._is_tokenizer_xlmroberta(model)
    if case["reader"] == "tiktoken":
        transformers.AutoTokenizer.from_pretrained = lambda folder, **_: QwenTokenizer(folder)
    ModelBase.load_hparams = staticmethod(lambda folder, _: config)
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
    seen["ids"] = ids_of(model.gguf_writer, folder)
    pairs = model.gguf_writer.kv_data[0].items()
    # A tekken vocabulary also sets {arch}.vocab_size, which is not a key of the tokenizer.
    return [plain(key, value) for key, value in pairs if key.startswith("tokenizer.")], seen.get("hash"), seen["ids"]


def ids_of(vocab, folder):
    path = folder / "vocab.gguf"
    writer = gguf.GGUFWriter(path, arch="llama")
    writer.kv_data[0].update(vocab.kv_data[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    run = subprocess.run([sys.executable, str(HERE / "encode.py"), sys.argv[2], str(path)], capture_output=True, text=True)
    ids = run.stdout.strip()
    return hashlib.sha256(ids.encode()).hexdigest() if run.returncode == 0 and "-1" not in ids else None


def plain(key, value):
    types, content = [value.type.name], value.value
    if value.type == gguf.GGUFValueType.ARRAY:
        types.append("UINT8" if isinstance(content, bytes) else gguf.GGUFValueType.get_type(content[0]).name)
        convert = {"STRING": lambda x: x.decode() if isinstance(x, bytes) else x, "FLOAT32": float}
        content = [convert.get(types[1], int)(x) for x in content]
        if key == "tokenizer.chat_templates":
            content.sort()
        if len(content) > 64:
            content = "sha256:" + hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()
    scalar = {"BOOL": bool, "UINT32": int}.get(types[0], lambda x: x)
    return [key, types, scalar(content)]


from_pretrained = transformers.AutoTokenizer.from_pretrained
expected = {}
for case in CASES["cases"]:
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_folder(case, folder)
        transformers.AutoTokenizer.from_pretrained = from_pretrained
        keys, check, ids = convert(case, folder)
        expected[case["name"]] = {"keys": keys, "hash": check, "ids": ids}
        print(case["name"], len(keys), check, ids)
lines = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in expected.items()]
(HERE / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
