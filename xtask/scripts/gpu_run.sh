#!/bin/sh
# Made by `cargo xtask gpu`. On a machine with an NVIDIA driver for CUDA 13: every byte that the GPU makes against the CPU's, then
# how fast it is. The exit code is 0 when all bytes are equal, 4 where there is no GPU to run on.
#
#   run.sh [DEVICE [VALUES [LAYERS]]]    the GPU's number; values to encode and layers of a checkpoint to convert when measuring
#                                        (0, 1073741824 and 16; 4 GB of memory and 5 GB under $TMPDIR)
set -eu
cd "$(dirname "$0")"
device=${1:-0}
values=${2:-1073741824}
layers=${3:-16}

echo "== the GPU"
./selfcheck --device "$device" --open || { echo "run.sh needs a GPU that mlpack can open: nothing was checked"; exit 4; }

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

echo "== the legal-qa model on the CPU and on cuda:$device"
types=F32,F16,BF16,Q8_0,Q4_0,Q4_1,Q5_0,Q5_1,Q2_K,Q3_K_M,Q4_K_M,Q5_K_M,Q6_K,IQ4_NL,IQ4_XS,IQ3_S,IQ3_M,TQ1_0,TQ2_0
weighted=IQ1_S,IQ1_M,IQ2_XXS,IQ2_XS,IQ2_S,IQ2_M,IQ3_XXS,IQ3_S,IQ4_XS,Q2_K,Q4_K_M,Q6_K,Q4_0,Q5_1
for where in cpu "cuda:$device"; do
    ./mlpack convert legal-qa/kjv-llama --quant "$types" --name base --device "$where" -o "$out/$where/base"
    ./mlpack convert legal-qa/kjv-llama -a legal-qa/legal-qa-lora --quant "$types" --name adapted --device "$where" \
        -o "$out/$where/adapted"
    ./mlpack convert legal-qa/kjv-llama --quant "$weighted" --imatrix legal-qa/golden/llama.cpp-b11434/imatrix.gguf \
        --name weighted --device "$where" -o "$out/$where/weighted"
    ./mlpack merge legal-qa/kjv-llama -a legal-qa/legal-qa-lora --device "$where" -o "$out/$where/merged"
    (cd "$out/$where" && find . -name '*.gguf' -o -name '*.safetensors' | sort | xargs sha256sum) > "$out/$where.sums"
done
cmp "$out/cpu.sums" "$out/cuda:$device.sums"
echo "$(wc -l < "$out/cpu.sums") files are the same"

echo "== llama-quantize's own files of that model"
here=$(pwd)
goldens=$here/legal-qa/golden/llama.cpp-b11434
mkdir "$out/goldens"
cp "$goldens/imatrix.gguf" "$out/goldens"
cd "$out/goldens"
"$here/mlpack" convert "$here/legal-qa/kjv-llama" --quant BF16 --device cpu -o .
golden() {
    prefix=$1
    shift
    types=$(find "$goldens" -name "$prefix-*.json" | sed 's/.*-\([A-Z0-9_]*\)\.json/\1/' | sort | paste -s -d , -)
    "$here/mlpack" quantize kjv-llama-BF16.gguf --quant "$types" --name kjv-llama --device "cuda:$device" -o "$prefix" "$@"
    for type in $(echo "$types" | tr , ' '); do
        sum=$(sha256sum < "$prefix/kjv-llama-$type.gguf" | cut -d ' ' -f 1)
        grep -q "\"file_sha256\": \"$sum\"" "$goldens/$prefix-$type.json" || { echo "$type differs from its golden"; exit 1; }
    done
    echo "$types are those of llama-quantize $*"
}
golden q
golden qi --imatrix imatrix.gguf
cd "$here"

echo "== kernels"
./selfcheck --device "$device" --values "$values"

echo "== a whole conversion: $layers layers of 61 million values, merged and encoded to Q4_K_M"
./selfcheck --checkpoint "$out/large" --layers "$layers" --tokenizer legal-qa/kjv-llama
seconds() {
    start=$(date +%s.%N)
    "$@" >&2
    echo "$start $(date +%s.%N)" | awk '{ printf "%.3f", $2 - $1 }'
}
sync
# What is read comes from the disk where this user may empty the page cache, else from memory.
forget() { { echo 3 > /proc/sys/vm/drop_caches; } 2> /dev/null || true; }
large() {
    forget
    seconds ./mlpack convert "$out/large/base" -a "$out/large/lora" --quant Q4_K_M --name large --device "$1" -o "$out/large/$1"
}
cpu=$(large cpu)
gpu=$(large "cuda:$device")
cmp "$out/large/cpu/large-Q4_K_M.gguf" "$out/large/cuda:$device/large-Q4_K_M.gguf"
forget
reading=$(seconds sh -c "cat '$out'/large/base/*.safetensors > /dev/null")
writing=$(seconds sh -c "cat '$out/large/cpu/large-Q4_K_M.gguf' > '$out/large/copy' && sync '$out/large/copy'")
echo "$cpu $gpu $reading $writing" | awk '{
    floor = $3 > $4 ? $3 : $4
    printf "CPU %.2f s, GPU %.2f s; reading alone %.2f s, writing and flushing alone %.2f s: ", $1, $2, $3, $4
    printf "the GPU takes %.2f times the slower of both (target: 1, the disk)\n", $2 / floor
}'
