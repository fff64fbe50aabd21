"""What an instance tells of its engine's memory, kept for the sizing of the next one."""

from datetime import datetime

from sqlmodel import Session

from fleet.db.sizings import note_did_not_fit, note_measured
from fleet.db.tables import GpuRow
from fleet.engines.spec import EngineSpec
from fleet.instances import Instance
from fleet.inventory import EngineRef, Gpu
from fleet.placement.request import ModelCard
from fleet.sizing.known import IN_RAM, SizingKey, class_text
from fleet.sizing.sizing import GpuClass, Sizing


def note(session: Session, instance: Instance, at: datetime) -> None:
    """Saying it again changes nothing. What was booked by a person's word, or of a model that nobody could read, says
    nothing about other starts."""
    placement, starved = instance.placement, instance.starved
    if instance.measured and placement is not None and placement.sizing is not None:
        uuid = placement.gpu_uuids[0] if placement.gpu_uuids else ""
        if key := _key(session, instance, uuid, placement.card, placement.sizing):
            note_measured(session, key, instance.measured, _engine(instance, instance.fence), at)
    if starved is None:
        return
    if key := _key(session, instance, starved.gpu_uuid, starved.card, starved.sizing):
        booked = starved.sizing.gpu_bytes or starved.sizing.ram_bytes
        note_did_not_fit(session, key, booked, _engine(instance, starved.fence), at)


def key_of(spec: EngineSpec, card: ModelCard, gpu: GpuClass, sizing: Sizing) -> SizingKey:
    return SizingKey(
        fingerprint=card.fingerprint,
        engine=spec.engine,
        engine_version=spec.engine_version,
        gpu_class=class_text(gpu),
        tensor_parallel=sizing.shape.tensor_parallel,
        pipeline_parallel=sizing.shape.pipeline_parallel,
        batched_tokens=sizing.batched_tokens,
        sequences=sizing.sequences,
        kv_dtype=spec.kv_cache.dtype,
    )


def _engine(instance: Instance, fence: int) -> EngineRef:
    return EngineRef(instance_id=instance.instance_id, fence=fence)


def _key(session: Session, instance: Instance, uuid: str, card: ModelCard, sizing: Sizing) -> SizingKey | None:
    """None: nobody can tell the model or the card any more."""
    gpu = _class_of(session, uuid)
    return key_of(instance.spec, card, gpu, sizing) if gpu is not None and card.fingerprint else None


def _class_of(session: Session, uuid: str) -> GpuClass | None:
    if not uuid:
        return IN_RAM
    row = session.get(GpuRow, uuid)
    if row is None or not row.details:
        return None
    gpu = Gpu.model_validate(row.details)
    return GpuClass(
        kind=gpu.kind,
        name=gpu.name,
        memory_bytes=gpu.memory_bytes,
        compute_capability=gpu.compute_capability,
        unified=gpu.unified,
    )
