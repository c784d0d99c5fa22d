"""What docs/webhooks.md tells receivers to do works."""

import re
import time
from pathlib import Path
from typing import Any

from command_api.webhooks.signature import new_secret, signed_headers

DOCUMENT = Path(__file__).parents[2] / "docs/webhooks.md"


def test_receivers_verify_without_a_library() -> None:
    [code] = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    is_ours = found["is_ours"]
    old, new, now = new_secret(), new_secret(), int(time.time())
    headers = signed_headers("evt_1_7", now, b"{}", [new, old])
    assert is_ours(new, headers, b"{}")
    assert is_ours(old, headers, b"{}")
    assert not is_ours(new_secret(), headers, b"{}")
    assert not is_ours(new, headers, b"{ }")
    assert not is_ours(new, {**headers, "webhook-id": "evt_1_8"}, b"{}")
    assert not is_ours(new, signed_headers("evt_1_7", now - 301, b"{}", [new]), b"{}")
