"""The `sj-ottt` command."""
