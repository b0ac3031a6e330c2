"""Training on a plan: a Sequential network laid out once for a batch size, then run without any tape.

`plan` fuses and wires the stages, `stages` are the steps, `layout` owns how everything lies in memory.
"""
