"""What the scrubber looks for: one module for each kind, one for the evasions, one that runs them.

Each kind is a function from a `Scan` to spans. It asks google-re2, which is linear on any input,
for candidates that are shaped so closely that ordinary text has few of them, and judges each in
code with windows of bounded size: RE2 has no lookaround, and Python's `re` is linear on nothing
larger.
"""
