"""Prophesee's files: RAW with the encodings EVT 2.0, 2.1 and 3.0, and DAT.

All begin with text lines ``% keyword value`` (`header`), which say how the rest is encoded and, in
several ways, how large the sensor is.
"""
