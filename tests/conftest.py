import os
import random

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same seeds, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def plain_style():
    """The style of the notebooks, set by one test, does not reach the next."""
    with matplotlib.rc_context():
        yield


@pytest.fixture
def each_epoch():
    """A checkpoint at the end of each epoch, however short it is, and at none of its steps."""
    from reproduce.loop.keeping import Keeper
    from reproduce.runs import stopping

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "due", lambda keeper: keeper.at.order is None or stopping.asked())
        yield
