"""The command `autoformer-zoo`, and what all commands of the project share.

Read main.py, then one file a verb: models.py (list and info), predict.py, attention.py, extract.py,
export.py, specialize.py (and profile). inputs.py turns the files that a user names into networks.
command.py runs any command, those of training, benchmarks and hub too. start.py is why `--help`
needs no torch.
"""
