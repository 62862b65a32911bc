"""File formats of event recordings, one module each: what the bytes mean.

Each ``read`` takes a path and returns a `Recording`; the module `sj_ottt.data.recordings.readers`
chooses among them.
"""
