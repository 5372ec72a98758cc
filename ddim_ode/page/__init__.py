"""A page to try a model in a browser, over a session; gradio draws it, which is in the extra ``[page]``."""
