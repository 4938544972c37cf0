#!/usr/bin/env bash
# A quick check that everything works: train a small network on digits, prune it, compare. A minute or two, no data needed.
#
#   examples/prune_test.sh [RATIO] [METHOD]
#
# With METHOD token, the network is a small vision transformer, and RATIO is the share of the tokens to keep.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
ratio=${1:-0.5} method=${2:-l1}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
if [ "$method" = token ]; then
    arch=timm:vit_tiny_r_s16_p8_224  # patches after a convolution, which learns faster
    size=(img_size=16 patch_size=1 embed_dim=64 depth=3 num_heads=4)
    prune train "$arch" "${size[@]/#/--model-kwargs=}" --data digits --epochs 10 --batch-size 32 \
        --optimizer adamw --lr 0.002 -o dense.safetensors
    export EPOCHS=0
else
    arch=cifar:resnet20
    prune train "$arch" --data digits --epochs 8 --lr 0.05 -o dense.safetensors
    export EPOCHS=4
fi
OUT=result GATE='top1_drop > 10 or macs_ratio > 0.9' \
    "$here/prune_compare.sh" dense.safetensors "$arch" digits "$ratio" "$method"
prune inspect "result/$([ "$EPOCHS" = 0 ] && echo pruned || echo finetuned).safetensors"
echo "ok"
