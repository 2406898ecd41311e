"""The curves of a run: the scalars in its TensorBoard files."""

import logging
import math
import os

Point = tuple[int, float]  # step, value


def read_curves(folder: str) -> dict[str, list[Point]]:
    """Tag ("train/loss", "eval/f1") -> its points in the order of steps; {} for a folder without TensorBoard files.

    TensorBoard's reader hides what a resumed run replaced (purge_step), and ignores a record that was not written
    completely. Values that are not finite cannot be drawn and are left out.
    """
    runs = os.path.join(folder, "runs")
    if not os.path.isdir(runs):
        return {}
    # Imported here: it takes half a second, and tagging, which imports this file too, has no curves.
    from tensorboard.backend.event_processing import event_accumulator

    # The reader logs what it hides, and that a record is incomplete. Both are expected after a resume.
    logger = logging.getLogger("tensorboard")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # How many events of a kind are kept; 0: all. Other kinds are not needed.
        keep = dict.fromkeys(event_accumulator.DEFAULT_SIZE_GUIDANCE, 1) | {event_accumulator.SCALARS: 0}
        events = event_accumulator.EventAccumulator(runs, size_guidance=keep).Reload()
    finally:
        logger.setLevel(level)
    curves = {}
    for tag in events.Tags()[event_accumulator.SCALARS]:
        points = [(event.step, event.value) for event in events.Scalars(tag)]
        curves[tag] = sorted((point for point in points if math.isfinite(point[1])), key=lambda point: point[0])
    return {tag: points for tag, points in curves.items() if points}
