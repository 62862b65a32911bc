"""``python -m sj_ottt``: the `sj-ottt` command."""

import sys

from sj_ottt.cli.main import main

sys.exit(main())
