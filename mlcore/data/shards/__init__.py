"""Photographs in tar shards: made from archives or folders, catalogued once, decoded ahead of the trainer."""
