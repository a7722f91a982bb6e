"""A static page that runs networks in the visitor's browser: `python -m hub.web OUT`.

Read networks.py (which ones, and what is known of them), runtime.py (onnxruntime-web, placed beside
the page), build.py (all of it as a folder); the page itself is in `page/`.
"""
