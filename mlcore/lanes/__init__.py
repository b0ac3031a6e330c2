"""Training small networks with images in the vector lanes: a network becomes a table of operations on rows of pixels.

`program` makes the table, `stages` know their operations, `layout` owns how everything lies in memory, `plan` trains.
"""
