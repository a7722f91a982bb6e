"""A Gradio app that cuts any subnet out of a supernet on the spot.

`app.py` is the app; `python -m hub.space OUT` writes a folder with it and the package, to be pushed
as a Space.
"""
