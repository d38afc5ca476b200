"""What README.md and docs/ say is there is there, and what is there is said."""

import re
from pathlib import Path

from kdtasks.engine import config as configs
from kdtasks.engine.key_table import key_table

ROOT = Path(__file__).parents[1]


def test_the_page_of_keys_is_that_of_the_code():
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == key_table(), "write it anew: python -m kdtasks.engine.key_table > docs/config.md"
    named = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(named) == len(set(named)) and set(configs.KEYS) <= set(named)
    for prefix, keys in (("data", configs.DATA_KEYS), ("student", configs.MODEL_KEYS), ("teacher", configs.TEACHER_KEYS),
                         ("losses.<name>", configs.LOSS_KEYS), ("stages.<k>", configs.STAGE_KEYS)):
        assert {f"{prefix}.{key}" for key in keys} <= set(named)
