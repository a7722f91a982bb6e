"""Classify images with an ONNX file of `autoformer-zoo export`: no torch, no timm.

python examples/classify_onnx.py MODEL.onnx IMAGE...
"""

from __future__ import annotations

import sys

from autoformer_zoo.onnx.classifier import OnnxClassifier


def main(arguments: list[str]) -> int:
    """Print the five best answers to each image or folder."""
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    classifier = OnnxClassifier(arguments[0])
    for answers in classifier.iter_predictions(arguments[1:], top_k=5):
        print(answers[0].image)
        for answer in answers:
            print(f"  {100 * answer.probability:5.1f} %  {answer.label}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
