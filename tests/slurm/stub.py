"""Stands for a script of the DAG where a test is about scheduling: notes where it ran, waits, writes what it should.

STUB_WAIT: JSON of script name -> s to wait at its first attempt. Its notes are {log}.stub.json.
"""

import json
import os
import sys
import time
from pathlib import Path

NAME = Path(sys.argv[0]).stem
options: dict[str, str] = {}
for word, following in zip(sys.argv, sys.argv[1:], strict=False):
    if word.startswith("--"):
        options[word] = following
log = Path(options["--log"])
log.parent.mkdir(parents=True, exist_ok=True)
wanted = ("SLURM_JOB_ID", "SLURM_JOB_PARTITION", "SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE")
notes = {name: os.environ.get(name, "") for name in wanted} | {"script": NAME, "argv": sys.argv[1:]}
if os.environ.get("RANK", "0") == "0":
    log.with_suffix(".stub.json").write_text(json.dumps(notes))
log.write_text("started\n")
# once: a retry goes straight through
waited = log.with_suffix(".waited")
if not waited.exists():
    waited.touch()
    time.sleep(float(json.loads(os.environ.get("STUB_WAIT", "{}")).get(NAME, 0)))
for option, value in options.items():
    if not option.startswith("--out"):
        continue
    path = Path(value)
    if NAME == "prepare_model":
        for file in ("config.json", "tokenizer.json", "model.json"):
            (path / file).write_text("{}")
    elif option == "--out-traces":
        path.mkdir(parents=True, exist_ok=True)
    else:
        path.write_text("{}")
