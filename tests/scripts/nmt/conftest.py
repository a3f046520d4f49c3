"""The translation commands need fairseq."""

import pytest

pytest.importorskip("fairseq", reason="the translation scripts need fairseq 0.12.2 and Python 3.10")
