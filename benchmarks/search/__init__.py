"""Methods of search, compared on the accuracies of released supernets.

Read landscapes.py (what is searched), methods.py (how), then __main__.py (the command).
"""

NAME = "search"  # of the file of rows
