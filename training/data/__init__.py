"""The data: where batches come from.

Read `batch` (what every source shares), `splits` (names of parts; the test split stays closed),
`transforms` (of one image), `views` (of whole batches), `datasets` (opening, decoding, loading);
then the sources `cifar10` (in memory), `indexed` (images with positions), `shards` and `streams`;
`open`, which puts them together; and `classes` (the names of a run's labels).
"""
