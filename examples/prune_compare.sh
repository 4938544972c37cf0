#!/usr/bin/env bash
# Evaluate a network, prune it, finetune it, evaluate it again, compare, and fail if too much accuracy is lost.
#
#   PRUNE_DATA=DATA examples/prune_compare.sh WEIGHTS ARCH DATASET [RATIO] [METHOD]
#   PRUNE_DATA=DATA examples/prune_compare.sh resnet56-4bfd9763.th cifar:resnet56 cifar10 0.5 l1
#
# With METHOD token, RATIO is the share of the tokens to keep, and there is no finetuning unless EPOCHS is set:
#   PRUNE_DATA=DATA examples/prune_compare.sh clip.pt open_clip:ViT-B-32 cifar10 0.5 token
#
# Results go to the folder named by OUT (default: prune_compare). EPOCHS sets the number of finetuning epochs (default 1;
# 0 skips finetuning) and GATE the condition for failure (exit code 3).
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
weights=$1 arch=$2 data=$3 ratio=${4:-0.5} method=${5:-l1}
budget=--ratio default_epochs=1
if [ "$method" = token ]; then budget=--keep-share default_epochs=0; fi
out=${OUT:-prune_compare} epochs=${EPOCHS:-$default_epochs} gate=${GATE:-top1_drop > 5.0}
mkdir -p "$out"

prune eval "$weights" --arch "$arch" --data "$data" -o "$out/baseline.json" --force
prune "$method" "$weights" --arch "$arch" --data "$data" "$budget" "$ratio" -o "$out/pruned.safetensors" --force
final=$out/pruned.safetensors
if [ "$epochs" -gt 0 ]; then
    final=$out/finetuned.safetensors
    prune finetune "$out/pruned.safetensors" --data "$data" --epochs "$epochs" -o "$final" --force
fi
prune eval "$final" --data "$data" -o "$out/pruned.json" --force
prune compare "$out/baseline.json" "$out/pruned.json" --markdown | tee "$out/comparison.md"
prune compare "$out/baseline.json" "$out/pruned.json" -o "$out/comparison.json" --force --fail-if "$gate" --quiet >/dev/null
