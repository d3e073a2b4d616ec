"""`make gpu`: the one command that proves the kernels on a GPU and measures them, offline and within minutes.

`rows` says what is measured against what, `timing` how, `checks` what has to be right first, `report` what is written,
and `__main__` runs them within a time limit.
"""
