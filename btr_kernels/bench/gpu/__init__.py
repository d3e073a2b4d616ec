"""`make gpu`: the one command that proves the kernels on a GPU and measures them, offline and within minutes.

`rows` says what is measured against what, `packages` what other packages are, `timing` and `measure` how, `checks` what
has to be right first, `report` what is written; `__main__` runs them in the time that `schedule` gives each.
"""
