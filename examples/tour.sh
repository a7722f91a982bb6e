#!/usr/bin/env bash
# The whole method on CIFAR-10 at smoke size, in about ten commands and a few minutes on two cores:
# train a supernet, search it under a budget, extract the winner, evaluate it, export it to int8
# and classify an image with onnxruntime. Accuracies mean nothing after one epoch at 16 px; the
# presets in training/settings/presets.py are the same commands at full length.
#
#   bash examples/tour.sh DATA OUT      # DATA holds cifar-10-batches-py
#
# Every step can be repeated: finished ones are resumed or replaced.
set -euo pipefail
data=$(realpath "${1:?usage: tour.sh DATA OUT}")
mkdir -p "${2:?usage: tour.sh DATA OUT}"
out=$(realpath "$2")
cd "$(dirname "$0")/.."

# What is there to search? The space nano, and what its networks cost.
autoformer-zoo info autoformer_nano

# A supernet: each step trains one random subnet, all subnets share their weights.
python -m training.train --data-dir "$data" --out "$out/train" --preset smoke

# The best subnet with at most two million parameters, scored with inherited weights.
python -m training.search --run-dir "$out/train" --data-dir "$data" --out "$out/search" \
  --bounds.max-params 2e6 --images 500 --evolution.population 8 --evolution.generations 2 \
  --evolution.keep 4 --evolution.crossover 3 --evolution.mutation 3
cat "$out/search/subnet.json"

# Cut it out of the supernet: an ordinary network in a file of its own.
autoformer-zoo extract "$out/train/weights.safetensors" "$out/search/subnet.json" \
  "$out/subnet.safetensors"

# Its accuracy on the test set.
python -m benchmarks.accuracy --models "autoformer_subnet=$out/subnet.safetensors" \
  --data torch/cifar10 --root "$data"

# Deploy: an int8 file that was compared with PyTorch, run without it.
autoformer-zoo export "$out/subnet.safetensors" "$out/subnet.onnx" --model autoformer_nano \
  --precision int8-dynamic
autoformer-zoo predict docs/cat.jpg --backend onnxruntime --checkpoint "$out/subnet.onnx"
