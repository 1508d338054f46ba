#!/bin/sh
# Made by `cargo xtask gpu`. On a machine with an NVIDIA driver for CUDA 13: every byte that the GPU makes against the CPU's, then
# how fast it is. The exit code is 0 when all bytes are equal.
set -eu
cd "$(dirname "$0")"
device=${1:-0}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

echo "== the legal-qa model on the CPU and on cuda:$device"
types=F32,F16,BF16,Q8_0,Q4_0,Q4_1,Q5_0,Q5_1,Q2_K,Q3_K_M,Q4_K_M,Q5_K_M,Q6_K,IQ4_NL,IQ4_XS
for where in cpu "cuda:$device"; do
    ./mlpack convert legal-qa/kjv-llama --quant "$types" --name base --device "$where" -o "$out/$where/base"
    ./mlpack convert legal-qa/kjv-llama -a legal-qa/legal-qa-lora --quant "$types" --name adapted --device "$where" \
        -o "$out/$where/adapted"
    ./mlpack convert legal-qa/kjv-llama --quant IQ4_XS,Q4_K_M,Q4_0,Q5_1 --imatrix legal-qa/golden/llama.cpp-b11434/imatrix.gguf \
        --name weighted --device "$where" -o "$out/$where/weighted"
    ./mlpack merge legal-qa/kjv-llama -a legal-qa/legal-qa-lora --device "$where" -o "$out/$where/merged"
    (cd "$out/$where" && find . -name '*.gguf' -o -name '*.safetensors' | sort | xargs sha256sum) > "$out/$where.sums"
done
cmp "$out/cpu.sums" "$out/cuda:$device.sums"
echo "$(wc -l < "$out/cpu.sums") files are the same"

echo "== llama-quantize's own files of that model"
goldens=legal-qa/golden/llama.cpp-b11434
types=Q4_0,Q4_1,Q5_0,Q5_1,Q8_0,Q2_K,Q3_K_S,Q3_K_M,Q3_K_L,Q4_K_S,Q4_K_M,Q5_K_S,Q5_K_M,Q6_K,IQ4_NL,IQ4_XS
mkdir "$out/goldens"
./mlpack convert legal-qa/kjv-llama --quant BF16 --device cpu -o "$out/goldens"
./mlpack quantize "$out/goldens/kjv-llama-BF16.gguf" --quant "$types" --name kjv-llama --device "cuda:$device" -o "$out/goldens"
for type in $(echo "$types" | tr , ' '); do
    sum=$(sha256sum < "$out/goldens/kjv-llama-$type.gguf" | cut -d ' ' -f 1)
    grep -q "\"file_sha256\": \"$sum\"" "$goldens/q-$type.json" || { echo "$type differs from its golden"; exit 1; }
done
echo "$types are those of llama-quantize"

echo "== kernels"
./selfcheck --device "$device"
