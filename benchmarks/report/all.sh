#!/usr/bin/env bash
# Measures what the generated tables and plots in README.md and docs/ show, in about an hour and a
# half on an idle machine of two cores. New rows replace older ones of the same machine in
# benchmarks/results; an interrupted run keeps the rows of all groups that were complete.
# docs/benchmarks.md names the tables that were written by hand.
#
#   bash benchmarks/report/all.sh DATA      # DATA holds cifar-10-batches-py
#
# `--quick` of most commands shows in under a minute that they work.
set -euo pipefail
data=$(realpath "${1:?usage: all.sh DATA}")
cd "$(dirname "$0")/../.."
sizes="tiny small base"

# latency.csv. Attention by its definition, against the fast forms: 2 minutes.
python -m benchmarks.latency --batch-size 1 --rounds 30 --seconds 40 --memory --save --models \
  autoformer_tiny autoformer_tiny@explicit autoformer_small autoformer_small@explicit \
  autoformer_base autoformer_base@explicit

# Each size against DeiT of that size: eager 6 minutes, ONNX 6, compiled 6. These rows replace the
# fast forms' rows of the command above.
for size in $sizes; do
  models="autoformer_$size deit_${size}_patch16_224"
  python -m benchmarks.latency --models $models --batch-size 1 8 --rounds 100 --seconds 35 \
    --memory --save
  python -m benchmarks.latency --models $models --batch-size 1 8 --rounds 100 --seconds 30 \
    --backend onnxruntime --memory --save
  python -m benchmarks.latency --models $models --batch-size 8 --rounds 60 --seconds 40 \
    --backend compile --save
done

# Engines at batch 1, 10 minutes; needs the extra `openvino`.
models="autoformer_tiny deit_tiny_patch16_224 autoformer_small deit_small_patch16_224 \
  autoformer_base deit_base_patch16_224"
python -m benchmarks.latency --models $models --backend onnxruntime openvino --batch-size 1 \
  --rounds 200 --seconds 55 --save
python -m benchmarks.latency --models $models --backend openvino eager --precision bf16 \
  --batch-size 1 --rounds 200 --seconds 50 --save
python -m benchmarks.latency --models $models --backend onnxruntime openvino \
  --precision int8 int8-static --batch-size 1 --rounds 200 --seconds 55 --save

# ONNX in int8, 4 minutes, and the small network, 1 minute.
python -m benchmarks.latency --backend onnxruntime --precision int8 --batch-size 1 8 \
  --models autoformer_tiny autoformer_small autoformer_base --rounds 60 --seconds 30 --memory --save
python -m benchmarks.latency --backend onnxruntime --precision fp32 int8 --batch-size 1 \
  --models autoformer_nano --rounds 400 --seconds 30 --save

# Larger images, where relative position costs more: 1 minute.
python -m benchmarks.latency --img-size 384 --batch-size 1 --seconds 20 --save \
  --models autoformer_tiny deit_tiny_patch16_224 autoformer_small deit_small_patch16_224

# pareto.csv and plot: every model with a published accuracy in one interleaved run, 2 minutes.
python -m benchmarks.latency --file pareto --batch-size 1 --rounds 30 --seconds 60 --save --models \
  autoformer_tiny autoformer_small autoformer_base prenas_tiny_6m prenas_small_23m prenas_base_54m \
  deit_tiny_patch16_224 deit_small_patch16_224 deit_base_patch16_224

# operators.csv 1 minute, attention.csv and plot 4, startup.csv 2.
python -m benchmarks.footprint.operators --save
python -m benchmarks.attention --save
python -m benchmarks.footprint.startup --save

# accuracy.csv, 2 minutes. `--models FILE.onnx` scores an exported file, by `--engine openvino` too.
python -m benchmarks.accuracy --models autoformer_nano --data torch/cifar10 --root "$data" --save
python -m benchmarks.accuracy --models autoformer_nano --data torch/cifar10 --root "$data" \
  --precision bf16 --save

# training.csv: a step of supernet training, 4 minutes, and a search's candidate, 5.
python -m benchmarks.training.train_step --space nano --batch-size 128 --rounds 8 --precision fp32 bf16 --save
python -m benchmarks.training.train_step --space tiny --batch-size 16 --rounds 6 --precision fp32 bf16 --save
python -m benchmarks.training.candidates --space nano --images 1000 --bf16 --rounds 7 --save
for batch in 8 32; do
  python -m benchmarks.training.candidates --space tiny --images 64 --batch-size 8 --bf16 \
    --explicit-batch-size "$batch" --save
done

# profiles.csv and plots: how well latency profiles predict, 5 minutes each.
plot=benchmarks/results/profile-tiny
python -m benchmarks.budgets.profiles --space tiny --threads 1 --seconds 300 \
  --plot $plot-eager.svg --save
python -m benchmarks.budgets.profiles --space tiny --threads 1 --seconds 300 \
  --backend onnxruntime --plot $plot-onnxruntime.svg --save
python -m benchmarks.budgets.profiles --space tiny --threads 1 --seconds 300 \
  --backend onnxruntime --precision int8 --plot $plot-int8.svg --save

# What a budget buys is only printed, 6 minutes. The slices are written into the package, 12.
python -m benchmarks.budgets.gains --space small --threads 1
python -m benchmarks.budgets.gains --space small --backend onnxruntime --precision int8 --threads 1
python -m benchmarks.budgets.slices --threads 1

# checked.csv: nano under latency budgets, predicted and measured, 9 minutes.
python -m benchmarks.budgets.checked --root "$data" --save

# search.csv and plot, 2 minutes. `--tables FILES` adds the searches of measured subnets.
python -m benchmarks.search --save

python -m benchmarks.report  # fills the tables, draws the plots
