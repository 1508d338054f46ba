"""Opens GGUF files with llama.cpp's own Python reader, which fails on a key, type, shape or offset that it cannot read.

usage: gguf_read.py GGUF_PY FILE...      GGUF_PY is the folder gguf-py of llama.cpp's source tree
"""

import sys

sys.path.insert(0, sys.argv[1])

from gguf import GGUFReader

for path in sys.argv[2:]:
    assert GGUFReader(path).tensors, f"{path}: no tensor"
