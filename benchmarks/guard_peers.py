"""Other detectors on the same texts: what they find, raise falsely and cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Detector = Callable[[str], bool]
CUT = 0.5
"""Score from which prompt-armor's rule layer counts as a hit, its own limit for a suspicion."""


def rules_of_prompt_armor(unpacked: Path) -> Detector:
    """Return the rule layer of prompt-armor, which needs no model and no network."""
    _importable(unpacked)
    from prompt_armor.config import (  # type: ignore[import-not-found] # a peer in a folder given
        ShieldConfig,
    )
    from prompt_armor.layers.l1_regex import (  # type: ignore[import-not-found] # likewise
        L1RegexLayer,
    )

    layer = L1RegexLayer(ShieldConfig())
    layer.setup()
    return lambda text: bool(layer.analyze(text).score >= CUT)


def plugins_of_detect_secrets(unpacked: Path) -> Detector:
    """Return the plugins of detect-secrets that look for formats, not for entropy."""
    _importable(unpacked)
    from detect_secrets.core.plugins.util import (  # type: ignore[import-not-found] # as above
        get_mapping_from_secret_type_to_class,
    )
    from detect_secrets.plugins.base import (  # type: ignore[import-not-found] # as above
        RegexBasedDetector,
    )

    plugins: list[Any] = [
        kind()
        for kind in get_mapping_from_secret_type_to_class().values()
        if issubclass(kind, RegexBasedDetector) and kind.__name__ != "IPPublicDetector"
    ]
    return lambda text: any(any(plugin.analyze_string(text)) for plugin in plugins)


def rate(detector: Detector, texts: Sequence[str]) -> dict[str, float]:
    """Return the texts, those with a hit, the share, and the CPU of one in microseconds."""
    before = time.process_time()
    hits = sum(map(detector, texts))
    seconds = time.process_time() - before
    return {
        "texts": len(texts),
        "hits": hits,
        "share": round(hits / len(texts), 4),
        "microseconds": round(seconds / len(texts) * 1e6, 1),
    }


def _importable(unpacked: Path) -> None:
    if str(unpacked) not in sys.path:
        sys.path.append(str(unpacked))
