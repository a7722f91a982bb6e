"""What a run is made of besides its computation: its directory, processes and command line.

Read `directory` (files of a run, `write_atomic`), `checkpoints`, `schedule` (what a step works on),
`distributed` (ranks), `signals`; `journal` serves searches and reports, `plots` draws, `command`
starts every `python -m training...`.
"""
