"""TensorRT's plans of a bundle: one for each stage, built into the bundle's own cache."""

from cascade.config.folders import read_stage_config
from cascade_export.bundle.bundle import Bundle
from cascade_export.bundle.gate import OnPart
from cascade_export.bundle.manifest import Weights
from cascade_export.engines.tensorrt.build import obtain_plan, plan_fingerprint, stage_profile
from cascade_export.engines.tensorrt.plan_cache import PlanCache
from cascade_export.graph.graph import GRAPH, Graph


def with_plans(bundle: Bundle, max_batch: int, on_part: OnPart | None = None) -> Bundle:
    """Build the plans of a draft's stages; a bundle of another engine stays as it is.

    Args:
        bundle: names the targets.
        max_batch: most pictures at a time.
        on_part: told of the progress.

    Raises:
        UserError: a stage cannot be built.
    """
    manifest = bundle.manifest
    if manifest.engine != "tensorrt" and manifest.engine != "tensorrt-rtx":
        return bundle
    stages = {}
    for name, entry in manifest.stages.items():
        if on_part is not None:
            on_part(f"build {name}", 0, 1)
        folder = bundle.stage_folder(name)
        graph = Graph.open(folder / GRAPH)
        fingerprint = plan_fingerprint(
            graph,
            entry.weights.sha256,
            manifest.engine,
            manifest.targets,
            manifest.precision,
            stage_profile(read_stage_config(folder), max_batch),
            manifest.quantisation,
        )
        weights = bundle.folder / entry.weights.file
        stored = obtain_plan(PlanCache(bundle.plans), graph, weights, fingerprint)
        stages[name] = entry.model_copy(update={"plan": stored.key})
        if on_part is not None:
            on_part(f"build {name}", 1, 1)
    return Bundle(bundle.folder, manifest.model_copy(update={"stages": stages}))


def build_for(bundle: Bundle, stage: str, weights: Weights) -> None:
    """Build the plan of a fine-tune's stage into the bundle's cache, if its plan holds weights.

    Without, the first who samples from the fine-tune would wait for it.

    Raises:
        UserError: the weights do not fit, or the plan cannot be built.
    """
    key = bundle.manifest.stages[stage].plan
    if key is None:
        return
    cache = PlanCache(bundle.plans)
    made = cache.named(key).manifest.fingerprint
    if made.weights is None:  # it is sent its weights before it runs
        return
    graph = Graph.open(bundle.stage_folder(stage) / GRAPH)
    wanted = made.model_copy(update={"weights": weights.sha256})
    obtain_plan(cache, graph, bundle.folder / weights.file, wanted)
