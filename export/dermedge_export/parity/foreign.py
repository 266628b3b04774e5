"""Run models on drawn images that show no skin, for the gate on what they reject."""

from dataclasses import replace

from dermedge_export.evaluation.ood import ood_task
from dermedge_export.evaluation.predictions import Predictions, Run, predict_table
from dermedge_export.synthetic.foreign import KINDS, draw_foreign
from dermedge_runtime.spec import Spec

FOREIGN = range(20 * len(KINDS))
"""Seeds of the drawn images that the gate counts: 20 of each kind."""


def with_foreign(predictions: Predictions, run: Run, spec: Spec) -> Predictions:
    """Return predictions with the `ood` scores of drawn images that show no skin.

    Args:
        predictions: Predictions of a model.
        run: The model, from uint8 [N, S, S, 3] to outputs by task.
        spec: Tasks and preprocessing of the model. Without an `ood` task, the
            predictions are returned as they are.
    """
    task = ood_task(spec)
    if task is None:
        return predictions
    drawn = (draw_foreign(seed, spec.preprocess.size) for seed in FOREIGN)
    return replace(predictions, foreign=predict_table(run, drawn)[task.name][:, 0])
