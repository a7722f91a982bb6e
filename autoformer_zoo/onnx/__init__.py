"""A classifier as an ONNX file, and the file as a classifier.

Read metadata.py (the metadata stored in a file), graph.py (the network in the operators that
onnxruntime runs fastest), preprocess.py, quantize.py, check.py (the file against PyTorch), then
export.py, which uses them all. classifier.py runs such a file without torch.
"""
