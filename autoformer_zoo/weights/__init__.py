"""Weight files: formats, how they are read, checked, cut, written and downloaded.

Read `slicing` (a subnet is a corner of its supernet), `files` (opening without trust, writing
safely), `layouts` (names and packing of each origin), `header` (what our files record),
`checkpoint` (one file, opened once); then `sources` (the table of upstream files), `download`, and
`pretrained` (from a model's name to its weights). `whole_files` writes any file all or not at all.
"""
