from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InferRequest(_message.Message):
    __slots__ = ("call_id", "modality", "model", "body", "principal", "remaining_s", "stream", "key", "native", "resume", "media", "criticality", "cost", "prefixes")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    REMAINING_S_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    NATIVE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    CRITICALITY_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    modality: str
    model: str
    body: bytes
    principal: Principal
    remaining_s: float
    stream: bool
    key: str
    native: Native
    resume: str
    media: _containers.RepeatedCompositeFieldContainer[Media]
    criticality: int
    cost: float
    prefixes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, call_id: _Optional[str] = ..., modality: _Optional[str] = ..., model: _Optional[str] = ..., body: _Optional[bytes] = ..., principal: _Optional[_Union[Principal, _Mapping]] = ..., remaining_s: _Optional[float] = ..., stream: _Optional[bool] = ..., key: _Optional[str] = ..., native: _Optional[_Union[Native, _Mapping]] = ..., resume: _Optional[str] = ..., media: _Optional[_Iterable[_Union[Media, _Mapping]]] = ..., criticality: _Optional[int] = ..., cost: _Optional[float] = ..., prefixes: _Optional[_Iterable[int]] = ...) -> None: ...

class Media(_message.Message):
    __slots__ = ("field", "data", "kind", "name")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    field: str
    data: bytes
    kind: str
    name: str
    def __init__(self, field: _Optional[str] = ..., data: _Optional[bytes] = ..., kind: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class Utterance(_message.Message):
    __slots__ = ("request", "frame")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    request: InferRequest
    frame: Frame
    def __init__(self, request: _Optional[_Union[InferRequest, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("data", "event")
    DATA_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    event: str
    def __init__(self, data: _Optional[bytes] = ..., event: _Optional[str] = ...) -> None: ...

class Native(_message.Message):
    __slots__ = ("dialect", "body")
    DIALECT_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    dialect: str
    body: bytes
    def __init__(self, dialect: _Optional[str] = ..., body: _Optional[bytes] = ...) -> None: ...

class Principal(_message.Message):
    __slots__ = ("key_id", "role", "tenant_id")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    role: str
    tenant_id: str
    def __init__(self, key_id: _Optional[str] = ..., role: _Optional[str] = ..., tenant_id: _Optional[str] = ...) -> None: ...

class InferReply(_message.Message):
    __slots__ = ("chunks", "error")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    error: Error
    def __init__(self, chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class InferManyRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[InferRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[InferRequest, _Mapping]]] = ...) -> None: ...

class InferManyReply(_message.Message):
    __slots__ = ("replies",)
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    replies: _containers.RepeatedCompositeFieldContainer[InferReply]
    def __init__(self, replies: _Optional[_Iterable[_Union[InferReply, _Mapping]]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("delta", "finished", "started", "raw", "more", "batch")
    DELTA_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    delta: bytes
    finished: Usage
    started: Started
    raw: bytes
    more: bool
    batch: int
    def __init__(self, delta: _Optional[bytes] = ..., finished: _Optional[_Union[Usage, _Mapping]] = ..., started: _Optional[_Union[Started, _Mapping]] = ..., raw: _Optional[bytes] = ..., more: _Optional[bool] = ..., batch: _Optional[int] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("model", "endpoint", "attempt")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    model: str
    endpoint: str
    attempt: int
    def __init__(self, model: _Optional[str] = ..., endpoint: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "source", "audio_ms", "characters", "images", "pixels")
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REASONING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    AUDIO_MS_FIELD_NUMBER: _ClassVar[int]
    CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    source: str
    audio_ms: int
    characters: int
    images: int
    pixels: int
    def __init__(self, input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., reasoning_tokens: _Optional[int] = ..., source: _Optional[str] = ..., audio_ms: _Optional[int] = ..., characters: _Optional[int] = ..., images: _Optional[int] = ..., pixels: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "param", "wire_code", "retry_after_s", "pending_s", "reason")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PARAM_FIELD_NUMBER: _ClassVar[int]
    WIRE_CODE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    PENDING_S_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    param: str
    wire_code: str
    retry_after_s: float
    pending_s: float
    reason: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., param: _Optional[str] = ..., wire_code: _Optional[str] = ..., retry_after_s: _Optional[float] = ..., pending_s: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class ModelSpec(_message.Message):
    __slots__ = ("name", "backend", "weights", "device", "slots", "queue_limit", "options", "load", "pinned", "idle_ttl_s", "max_batch")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_LIMIT_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    IDLE_TTL_S_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_FIELD_NUMBER: _ClassVar[int]
    name: str
    backend: str
    weights: str
    device: str
    slots: int
    queue_limit: int
    options: bytes
    load: str
    pinned: bool
    idle_ttl_s: float
    max_batch: int
    def __init__(self, name: _Optional[str] = ..., backend: _Optional[str] = ..., weights: _Optional[str] = ..., device: _Optional[str] = ..., slots: _Optional[int] = ..., queue_limit: _Optional[int] = ..., options: _Optional[bytes] = ..., load: _Optional[str] = ..., pinned: _Optional[bool] = ..., idle_ttl_s: _Optional[float] = ..., max_batch: _Optional[int] = ...) -> None: ...

class Capability(_message.Message):
    __slots__ = ("modality", "features", "context_tokens", "dimensions", "voices")
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    VOICES_FIELD_NUMBER: _ClassVar[int]
    modality: str
    features: _containers.RepeatedScalarFieldContainer[str]
    context_tokens: int
    dimensions: int
    voices: _containers.RepeatedCompositeFieldContainer[Voice]
    def __init__(self, modality: _Optional[str] = ..., features: _Optional[_Iterable[str]] = ..., context_tokens: _Optional[int] = ..., dimensions: _Optional[int] = ..., voices: _Optional[_Iterable[_Union[Voice, _Mapping]]] = ...) -> None: ...

class Voice(_message.Message):
    __slots__ = ("id", "language", "gender", "aliases")
    ID_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    GENDER_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    id: str
    language: str
    gender: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., language: _Optional[str] = ..., gender: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("spec", "capabilities", "device", "running", "queued", "ready", "loaded", "memory_bytes", "loading", "pending_cost", "s_per_cost", "prefixes")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOADING_FIELD_NUMBER: _ClassVar[int]
    PENDING_COST_FIELD_NUMBER: _ClassVar[int]
    S_PER_COST_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    spec: ModelSpec
    capabilities: _containers.RepeatedCompositeFieldContainer[Capability]
    device: str
    running: int
    queued: int
    ready: bool
    loaded: bool
    memory_bytes: int
    loading: bool
    pending_cost: float
    s_per_cost: float
    prefixes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, spec: _Optional[_Union[ModelSpec, _Mapping]] = ..., capabilities: _Optional[_Iterable[_Union[Capability, _Mapping]]] = ..., device: _Optional[str] = ..., running: _Optional[int] = ..., queued: _Optional[int] = ..., ready: _Optional[bool] = ..., loaded: _Optional[bool] = ..., memory_bytes: _Optional[int] = ..., loading: _Optional[bool] = ..., pending_cost: _Optional[float] = ..., s_per_cost: _Optional[float] = ..., prefixes: _Optional[_Iterable[int]] = ...) -> None: ...

class DeviceStatus(_message.Message):
    __slots__ = ("id", "name", "memory_total_bytes", "memory_free_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    memory_total_bytes: int
    memory_free_bytes: int
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., memory_total_bytes: _Optional[int] = ..., memory_free_bytes: _Optional[int] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("id", "models", "devices", "draining", "address", "incarnation", "seq", "at_s", "labels", "version")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    id: str
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    devices: _containers.RepeatedCompositeFieldContainer[DeviceStatus]
    draining: bool
    address: str
    incarnation: int
    seq: int
    at_s: float
    labels: _containers.ScalarMap[str, str]
    version: str
    def __init__(self, id: _Optional[str] = ..., models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ..., devices: _Optional[_Iterable[_Union[DeviceStatus, _Mapping]]] = ..., draining: _Optional[bool] = ..., address: _Optional[str] = ..., incarnation: _Optional[int] = ..., seq: _Optional[int] = ..., at_s: _Optional[float] = ..., labels: _Optional[_Mapping[str, str]] = ..., version: _Optional[str] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("spec",)
    SPEC_FIELD_NUMBER: _ClassVar[int]
    spec: ModelSpec
    def __init__(self, spec: _Optional[_Union[ModelSpec, _Mapping]] = ...) -> None: ...

class LoadReply(_message.Message):
    __slots__ = ("model", "error")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    model: ModelStatus
    error: Error
    def __init__(self, model: _Optional[_Union[ModelStatus, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class UnloadRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadReply(_message.Message):
    __slots__ = ("error",)
    ERROR_FIELD_NUMBER: _ClassVar[int]
    error: Error
    def __init__(self, error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("grace_s",)
    GRACE_S_FIELD_NUMBER: _ClassVar[int]
    grace_s: float
    def __init__(self, grace_s: _Optional[float] = ...) -> None: ...

class DrainReply(_message.Message):
    __slots__ = ("error",)
    ERROR_FIELD_NUMBER: _ClassVar[int]
    error: Error
    def __init__(self, error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("worker", "error")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    worker: WorkerStatus
    error: Error
    def __init__(self, worker: _Optional[_Union[WorkerStatus, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...
