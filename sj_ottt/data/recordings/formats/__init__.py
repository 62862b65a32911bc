"""File formats of event recordings, one module each: what the bytes mean.

Each ``read`` takes a path and returns a `Recording`; `sj_ottt.data.readers` chooses among them.
"""
