"""Issues <-> plan files, both ways, twice without a difference.

    issue           number title body state labels milestone      base    how it stood when plan and issue last agreed
    inward          issues -> a plan's tasks, linked by a marker   outward tasks -> issues, linked by a hidden marker
    store           where issues are: a JSON export, or GitHub     blocks  a plan's tasks as pieces of its text

Each field is merged by itself: what changed on one side is taken, what changed on both and differs is a conflict, which
is named and left as it is until a person says which side to take.
"""
