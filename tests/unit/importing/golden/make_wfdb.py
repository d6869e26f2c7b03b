"""Writes wfdb.json beside it: small records of random samples as the WFDB Python package (wfdb 4.3.1, MIT-LCP) reads them.

`pip install wfdb==4.3.1 && python make_wfdb.py`. The package is no dependency of the tests: it brings pandas and matplotlib.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import wfdb  # type: ignore[import-not-found]

HERE = Path(__file__).parent


def main() -> None:
    made: dict[str, object] = {}
    dice = np.random.default_rng(1)
    os.chdir(tempfile.mkdtemp())
    for form in (8, 16, 24, 32, 61, 80, 160, 212, 310, 311):
        raw = dice.integers(0, 256, {212: 63, 310: 56, 311: 56, 24: 126, 32: 168}.get(form, 42 if form in (8, 80) else 84), dtype=np.uint8)
        if form == 311:
            raw[3::4] &= 63  # two bits of 32 are unused
        Path(f"r{form}.dat").write_bytes(raw.tobytes())
        header = f"r{form} 2 360 21\nr{form}.dat {form} 100(3)/mV 12 0 5 0 0 I\nr{form}.dat {form} 2.5(-7)/uV 12 0 -9 0 0 V5\n"
        Path(f"r{form}.hea").write_text(header)
        values = wfdb.rdrecord(f"r{form}").p_signal.T
        shown = [[None if np.isnan(value) else round(float(value), 6) for value in row] for row in values]
        made[str(form)] = {"header": header, "data": base64.b64encode(raw.tobytes()).decode(), "values": shown}
    wfdb.wrann("a", "atr", np.array([5, 1500, 1_000_000]), symbol=["N", "V", "+"], aux_note=["", "Zhang San", "(AFIB"])
    made["annotations"] = base64.b64encode(Path("a.atr").read_bytes()).decode()
    (HERE / "wfdb.json").write_text(json.dumps(made))


if __name__ == "__main__":
    main()
