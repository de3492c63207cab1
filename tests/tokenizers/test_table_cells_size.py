"""A column of many distinct texts costs time in proportion to its rows."""

import time

import numpy as np

from mmlm.data.tables import Column
from mmlm.tokenizers.config import CellTokens
from mmlm.tokenizers.table_cells import NUM_NUMERIC, cell_features, hash_text


def test_texts_that_name_every_row_are_not_quadratic():
    rows = 40_000
    values = np.arange(rows, dtype=np.float64)
    values[::7] = np.nan
    column = Column("name", "category", values, [f"n{at % 50}" if at < 50 else str(at) for at in range(rows)])
    config = CellTokens()
    began = time.process_time()
    cells_rcf = cell_features([column], np.array([0, 1]), 2, config)
    assert time.process_time() - began < 12, "seconds of CPU"  # 1 to 3; a pass over all rows for each text takes a minute
    texts = slice(NUM_NUMERIC, NUM_NUMERIC + config.text_hash)
    np.testing.assert_array_equal(cells_rcf[8, 0, texts], hash_text("n8", config.text_hash))
    assert not cells_rcf[7, 0, texts].any()
