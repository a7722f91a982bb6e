"""From images to class names.

Read images.py (any image source to RGB), predictions.py (probabilities to the best
classes; no torch), predict.py (any timm model), attention.py (where a network looks), folders.py (a
folder of classes as a data set).
"""
