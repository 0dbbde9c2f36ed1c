"""Writes the references of the table of functions, computed by nested `jax.jvp`.

Tests compare expansions with the stored references. The thorough ones compute a part
of these again. Entries that this release of JAX does not have keep their stored
references.
"""

import numpy as np
from tests.helpers.configuration import configure


configure()

from tests.helpers.table.fields import ALL, ENTRIES, nested, REFERENCES, references


def main() -> None:
    stored = references() if REFERENCES.exists() else {}
    known = stored | {name: nested(entry) for name, entry in ENTRIES.items()}
    names = [name for name in ALL if name in known]
    most = max(len(known[name]) for name in names)
    coefficients = np.full((len(names), most, 4), np.nan)
    for padded, name in zip(coefficients, names):
        padded[: len(known[name])] = known[name]
    np.savez_compressed(REFERENCES, names=np.array(names), coefficients=coefficients)


if __name__ == "__main__":
    main()
