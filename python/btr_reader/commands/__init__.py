"""The subcommands of `btr`, one module each.

A module here may import only the standard library and tyro at its top: `btr --help` reads all of them.
"""
