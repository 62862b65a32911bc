"""File formats of event recordings, one module each: what the bytes mean.

Each ``sniff`` says whether a file's first bytes are of its format. Each ``read`` takes a path and
returns a `Recording`; it raises `InputError` where the file is damaged or of a kind that it does
not read. The module `sj_ottt.data.recordings.readers` chooses among them.
"""
