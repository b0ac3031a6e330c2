"""What the network says of the training images after each epoch, written for others to score.

The trainer's own error numbers come from the batches as they pass, through augmentation and moving weights. A harness
that wants the training error after an epoch scores these files against the labels itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlcore.data.feeds import evaluated
from mlcore.data.shards.photos import Photos
from mlcore.data.views import Stream
from mlcore.evaluate import Classes
from mlcore.files import write_array
from mlcore.session import AnyDataset, Session

PATTERN = "train_predictions_*.npy"


@dataclass(frozen=True)
class Snapshots:
    """Into `folder`, [N] of `dtype`, of `images`: every training image of the files, in their order, not augmented.

    That is one more pass forward an epoch; images held out by the recipe's validation and limit are among them.
    """

    folder: Path
    images: Stream
    dtype: type[np.uint8] | type[np.uint16]

    def write(self, epoch: int, predictions_N: Classes) -> None:
        """train_predictions_EEE.npy, `epoch` from 1; an OSError leaves no part of it."""
        write_array(self.folder / PATTERN.replace("*", f"{epoch:03}"), predictions_N.astype(self.dtype))


def of_training_images(folder: Path, session: Session, dataset: AnyDataset) -> Snapshots:
    """Snapshots by the centre view of each image; uint8, or uint16 of more than 256 classes."""
    data = session.recipe.data.model_copy(update={"views": "centre"})
    if isinstance(dataset, Photos):
        images: Stream = dataset.trained(session.feeds.normaliser, session.feeds.faults)
    else:
        images = evaluated(data, dataset.train_images, None, session.feeds.normaliser)
    return Snapshots(folder, images, np.uint8 if dataset.classes <= 256 else np.uint16)
