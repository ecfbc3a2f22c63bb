#!/usr/bin/env bash
# Trains mini's base from a pack on two processes, once without a break and once killed half way and started again,
# and compares the weights: they must be the same to the bit. The second run decodes in worker processes.
#
#   python tools/photo_tars.py ../shared/data/packs build/tars
#   cascade data pack 'build/tars/tiny64-{00000..00013}.tar' -o build/photos --class-names build/tars/classes.txt
#   tools/killed_run.sh build/photos runs/killed [FLAG ...]
#
# Flags are those of `cascade train` and stand over the ones below.
set -euo pipefail
pack=${1:?"name the pack"} output=${2:?"name the folder that gets the runs"}
shift 2
steps=500
train() {
  local name=$1 workers=$2
  shift 2
  "${PYTHON:-python}" -m torch.distributed.run --standalone --nproc-per-node 2 -m cascade train configs/mini-base64.toml \
    --set "output=$output/$name" --set "data.folder=$pack" --set "data.workers=$workers" \
    --set "train.steps=$steps" --set train.batch_size=8 --set train.precision=fp32 --set train.checkpoint_every=100 \
    --set train.log_every=25 --set train.optimizer.warmup_steps=50 --set train.validate_every=250 \
    --set validation.images_per_prompt=1 --set validation.loss_rows=32 "$@"
}
train whole 0 "$@"
train killed 1 "$@" &
until grep -qs "\"step\": $((steps / 2))," "$output/killed/log.jsonl"; do
  kill -0 $! || exit 1
  sleep 1
done
while pkill -9 -f "output=$output/killed"; do sleep 1; done
wait || true
train killed 1 "$@"
sha256sum "$output"/{whole,killed}/stage/model.safetensors
cmp "$output"/{whole,killed}/stage/model.safetensors && echo "the same weights"
