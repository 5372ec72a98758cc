"""The commands about data sets and models. ``cli.py``, which has those about pictures, puts all of them together."""
