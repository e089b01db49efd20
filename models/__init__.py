"""Everything that knows diffusers: which model a name means, what it was trained on, and how it is loaded."""

import logging
import sys

# bitsandbytes, which peft imports where it is installed, would through this package fetch compiled code from the hub and run it,
# and where it is absent advises to install it
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]  # None is how Python marks what cannot be imported
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
