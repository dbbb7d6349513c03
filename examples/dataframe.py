"""A DataFrame is the shared value: one report for each shop, from a frame that all workers share.

The same function runs in this process, in a pool of multiprocessing, with joblib, in parallel with
nothing marked, and with the frame shared.
"""

import importlib.util
import sys

import numpy as np

if importlib.util.find_spec("pandas") is None:
    print("This example needs pandas: pip install pandas pyarrow")
    sys.exit()

import pandas as pd
from support.ways import Way, by_joblib, by_pool, by_task, forked_pool, side_by_side

from sharedtask import Shared, parallel

SHOPS = 60


def sales_of(rows: int) -> pd.DataFrame:
    """Times, prices, a category, and texts."""
    rng = np.random.default_rng(0)
    shops = pd.Categorical.from_codes(np.sort(rng.integers(0, SHOPS, rows)), range(SHOPS))
    return pd.DataFrame(
        {
            "time": pd.date_range("2024", periods=rows, freq="s"),
            "shop": shops,
            "price": rng.gamma(2, 10, rows),
            "pieces": rng.integers(1, 9, rows),
            "article": np.array(["pen", "paper", "ink", "envelope"])[rng.integers(0, 4, rows)],
        }
    )


def report(shop: int, sales: pd.DataFrame) -> dict:
    """The revenue of each article in one shop."""
    low, high = sales["shop"].cat.codes.searchsorted([shop, shop + 1])
    own = sales.iloc[low:high]
    return (own["price"] * own["pieces"]).groupby(own["article"]).sum().round(6).to_dict()


@parallel
def report_copied(shop: int, sales: pd.DataFrame) -> dict:
    return report(shop, sales)


@parallel
def report_shared(shop: int, sales: Shared[pd.DataFrame]) -> dict:
    return report(shop, sales)


pool = forked_pool()
size = sales_of(1_000_000).memory_usage().sum()
print(f"{SHOPS} reports, a frame of 1,000,000 rows ({size / 1e6:.0f} MB), 4 workers")

answers = side_by_side(
    sales_of(10_000),
    lambda: sales_of(1_000_000),
    [
        by_pool(pool, report, range(SHOPS), "sales"),
        Way("serial", lambda sales: [report(shop, sales) for shop in range(SHOPS)]),
        by_joblib(report, range(SHOPS), "sales"),
        by_task("parallel, nothing marked", report_copied, range(SHOPS), "sales"),
        by_task("parallel, Shared", report_shared, range(SHOPS), "sales"),
    ],
)
print(f"all reports are the same: {all(answers[0] == other for other in answers)}")
