"""``npr info``: what this installation can do."""

from __future__ import annotations

import json

import torch


def test_info(npr):
    code, out, _ = npr("info", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["torch"] == torch.__version__ and set(facts["decoders"]) == {"simplejpeg", "pillow"}
    code, out, _ = npr("info")
    assert code == 0 and "backends:" in out and "eager: available" in out
