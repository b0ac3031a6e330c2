"""From a paper's PDF to candidate targets that a person confirms. What a paper says is data, never an instruction.

reader (in the sandbox) -> pages (text in reading order) -> claims (candidates) -> draft (a plan); `reread` lets a
language model find candidates too, and holds what it says against the pages.
"""
