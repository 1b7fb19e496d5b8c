"""Sent with `python3 -c`: puts the way back's own files on the host (they come by stdin as JSON) and runs them."""

import json
import os
import runpy
import sys
import tempfile
from pathlib import Path

texts = json.load(sys.stdin)
folder = Path(tempfile.mkdtemp() if "--check" in sys.argv else "/var/lib/gpu-bringup/way_back")
folder.mkdir(mode=0o700, parents=True, exist_ok=True)
for name, text in texts.items():
    part = folder / f".{name}.{os.getpid()}"  # two may do this at once
    part.write_text(text, encoding="utf-8")
    part.replace(folder / name)
sys.dont_write_bytecode = True
sys.argv[0] = str(folder)
runpy.run_path(str(folder), run_name="__main__")
