#!/usr/bin/env bash
# A quick check that everything works: train a small network on digits, prune it, compare. About a minute, no data needed.
#
#   examples/prune_test.sh [RATIO]
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
prune train cifar:resnet20 --data digits --epochs 8 --lr 0.05 -o dense.safetensors
OUT=result EPOCHS=4 GATE='top1_drop > 10 or macs_ratio > 0.9' \
    "$here/prune_compare.sh" dense.safetensors cifar:resnet20 digits "${1:-0.5}"
prune inspect result/finetuned.safetensors
echo "ok"
