#!/usr/bin/env bash
# Times training on one GPU: a 500M base, an Efficient U-Net (64 -> 256) and DeepFloyd IF's smallest base at
# batch 64, then IF's largest base with recomputation; each as this project trains it (eager, compiled, as CUDA
# graphs, with the Triton kernels) and as diffusers' script and imagen-pytorch's trainer do.
#
#   tools/bench_training.sh OUTPUT [FLAG ...]
#
# Flags are those of `cascade bench train` and stand over the ones below. What was cut short goes on where it
# stopped when the same command is given again. Without a GPU the same commands can be rehearsed:
#
#   tools/bench_training.sh runs/rehearsal --device cpu --width 32 --side 32 --batch 1 --rounds 2 --repeats 1
set -uo pipefail
output=${1:?"name the folder that gets the records"}
shift
train() {
  local name=$1
  shift
  "${PYTHON:-python}" -m cascade bench train --modes step --device cuda --precision bf16 --rounds 5 --repeats 2 \
    --output "$output/$name" "$@" || echo "$name ended with status $?" >&2
}
# What matters most comes first. diffusers has no network of the first two kinds, and says so.
others=triton-compiled,graphs,triton-graphs,eager,diffusers,diffusers-compiled,imagen-pytorch
train base64-500m --network base64-500m --batch 64 --against "compiled,$others" "$@"
train imagen-sr256 --network imagen-sr256 --batch 64 --against "compiled,$others" "$@"
# 69 GB of weights, gradients and moments: one at a time.
for provider in compiled diffusers triton-compiled; do
  train "if-i-xl-$provider" --network if-i-xl --batch 32 --gradient-checkpointing full --against "$provider" "$@"
done
train if-i-m --network if-i-m --batch 64 --against "compiled,$others" "$@"
