#!/usr/bin/env bash
# CIFAR-10 for machines that reach package registries only: the npm package convnetjs contains the
# original python files. torchvision compares their MD5 sums with the published ones when it opens
# them. The images are for local tests and are never committed.
#
#   bash .ci/fetch_cifar10.sh FOLDER      # makes FOLDER/cifar-10-batches-py, 177 MB
set -euo pipefail
folder=${1:?usage: fetch_cifar10.sh FOLDER}
target=$folder/cifar-10-batches-py
[[ -d $target ]] && exit 0
mkdir -p "$folder"
part=$(mktemp -d "$folder/.cifar-10-XXXXXX")
trap 'rm -rf "$part"' EXIT
(cd "$part" && npm pack --silent convnetjs@0.1.4 >/dev/null && tar xzf convnetjs-0.1.4.tgz)
mkdir "$part/batches"
mv "$part"/package/demo/cifar10/{data_batch_{1,2,3,4,5},test_batch,batches.meta} "$part/batches"
mv "$part/batches" "$target"
