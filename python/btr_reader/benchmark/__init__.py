"""End-to-end reading throughput: all forms of a reader side by side in one process, in alternating rounds.

settings: what is measured; contenders: readers, stores and questions for it; memory: the memory that a reader takes;
run: the rounds and the report of them; report: the report as a table and as plots.
"""
