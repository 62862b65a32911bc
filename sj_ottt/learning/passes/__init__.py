"""What goes through a sequence: its passes (`sequence`), and what each of them needs.

`neurons` says which networks a pass can be right for, `outputs` handles several outputs at once,
`lengths` sequences of different lengths, and `update` the update of the weights.
"""
