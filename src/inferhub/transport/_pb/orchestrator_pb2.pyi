from inferhub.transport._pb import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RegisterRequest(_message.Message):
    __slots__ = ("protocol", "worker")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    worker: _worker_pb2.WorkerStatus
    def __init__(self, protocol: _Optional[int] = ..., worker: _Optional[_Union[_worker_pb2.WorkerStatus, _Mapping]] = ...) -> None: ...

class RegisterReply(_message.Message):
    __slots__ = ("heartbeat_s", "lease_s", "error")
    HEARTBEAT_S_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    heartbeat_s: float
    lease_s: float
    error: _worker_pb2.Error
    def __init__(self, heartbeat_s: _Optional[float] = ..., lease_s: _Optional[float] = ..., error: _Optional[_Union[_worker_pb2.Error, _Mapping]] = ...) -> None: ...

class Pulse(_message.Message):
    __slots__ = ("model", "running", "queued", "ready", "loaded", "loading", "memory_bytes", "pending_cost", "s_per_cost", "prefixes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    LOADING_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PENDING_COST_FIELD_NUMBER: _ClassVar[int]
    S_PER_COST_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    model: str
    running: int
    queued: int
    ready: bool
    loaded: bool
    loading: bool
    memory_bytes: int
    pending_cost: float
    s_per_cost: float
    prefixes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[str] = ..., running: _Optional[int] = ..., queued: _Optional[int] = ..., ready: _Optional[bool] = ..., loaded: _Optional[bool] = ..., loading: _Optional[bool] = ..., memory_bytes: _Optional[int] = ..., pending_cost: _Optional[float] = ..., s_per_cost: _Optional[float] = ..., prefixes: _Optional[_Iterable[int]] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ("id", "incarnation", "seq", "at_s", "draining", "pulses", "memory_free_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    PULSES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: str
    incarnation: int
    seq: int
    at_s: float
    draining: bool
    pulses: _containers.RepeatedCompositeFieldContainer[Pulse]
    memory_free_bytes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, id: _Optional[str] = ..., incarnation: _Optional[int] = ..., seq: _Optional[int] = ..., at_s: _Optional[float] = ..., draining: _Optional[bool] = ..., pulses: _Optional[_Iterable[_Union[Pulse, _Mapping]]] = ..., memory_free_bytes: _Optional[_Iterable[int]] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("beat",)
    BEAT_FIELD_NUMBER: _ClassVar[int]
    beat: Beat
    def __init__(self, beat: _Optional[_Union[Beat, _Mapping]] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("error",)
    ERROR_FIELD_NUMBER: _ClassVar[int]
    error: _worker_pb2.Error
    def __init__(self, error: _Optional[_Union[_worker_pb2.Error, _Mapping]] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("id", "incarnation")
    ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    id: str
    incarnation: int
    def __init__(self, id: _Optional[str] = ..., incarnation: _Optional[int] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ("error",)
    ERROR_FIELD_NUMBER: _ClassVar[int]
    error: _worker_pb2.Error
    def __init__(self, error: _Optional[_Union[_worker_pb2.Error, _Mapping]] = ...) -> None: ...

class Deployment(_message.Message):
    __slots__ = ("spec", "replicas", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SPEC_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    spec: _worker_pb2.ModelSpec
    replicas: int
    labels: _containers.ScalarMap[str, str]
    def __init__(self, spec: _Optional[_Union[_worker_pb2.ModelSpec, _Mapping]] = ..., replicas: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class WantRequest(_message.Message):
    __slots__ = ("holder", "deployments")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENTS_FIELD_NUMBER: _ClassVar[int]
    holder: str
    deployments: _containers.RepeatedCompositeFieldContainer[Deployment]
    def __init__(self, holder: _Optional[str] = ..., deployments: _Optional[_Iterable[_Union[Deployment, _Mapping]]] = ...) -> None: ...

class WantReply(_message.Message):
    __slots__ = ("loading", "error")
    LOADING_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    loading: str
    error: _worker_pb2.Error
    def __init__(self, loading: _Optional[str] = ..., error: _Optional[_Union[_worker_pb2.Error, _Mapping]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("holder",)
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    holder: str
    def __init__(self, holder: _Optional[str] = ...) -> None: ...

class WatchReply(_message.Message):
    __slots__ = ("epoch", "revision", "members", "beats", "gone", "suspects", "error")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    BEATS_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    SUSPECTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    revision: int
    members: _containers.RepeatedCompositeFieldContainer[Member]
    beats: _containers.RepeatedCompositeFieldContainer[Beat]
    gone: _containers.RepeatedScalarFieldContainer[str]
    suspects: _containers.RepeatedScalarFieldContainer[str]
    error: _worker_pb2.Error
    def __init__(self, epoch: _Optional[str] = ..., revision: _Optional[int] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., beats: _Optional[_Iterable[_Union[Beat, _Mapping]]] = ..., gone: _Optional[_Iterable[str]] = ..., suspects: _Optional[_Iterable[str]] = ..., error: _Optional[_Union[_worker_pb2.Error, _Mapping]] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("worker",)
    WORKER_FIELD_NUMBER: _ClassVar[int]
    worker: _worker_pb2.WorkerStatus
    def __init__(self, worker: _Optional[_Union[_worker_pb2.WorkerStatus, _Mapping]] = ...) -> None: ...
